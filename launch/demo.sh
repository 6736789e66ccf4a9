#!/usr/bin/env bash
# Phantoms, preparation, training, evaluation, and one patient's prediction.
#
#   bash launch/demo.sh [SEED] [FOLDER]       # default: 0 demo/SEED
#
# Called again with the same folder, it resumes.
set -euo pipefail
seed=${1:-0}
folder=$(realpath -m "${2:-$(dirname "$0")/../demo/$seed}")
cd "$(dirname "$0")/.."
. launch/_environment.sh
use_environment ''

mkdir -p "$folder"

step() { echo; echo "== $*"; }

step "a cohort of phantoms"
if [ ! -e "$folder/phantoms" ]; then
  python -m drenet_jax.synthesize --out="$folder/phantoms" --persons=150 --seed="$seed"
fi

step "preparation: slices, lungs, records"
if [ ! -e "$folder/data" ]; then
  python -m drenet_jax.prepare --cohort="$folder/phantoms/cohort.csv" --out="$folder/data" \
    --seed="$seed" --config.image_size_px=160
fi

step "training"
python -m drenet_jax.train --config=configs/demo.py --workdir="$folder/run" \
  --config.data.dir="$folder/data" --config.seed="$seed"

step "evaluation of the test persons"
if [ ! -e "$folder/test" ]; then
  python -m drenet_jax.evaluate --workdir="$folder/run" --split=test --out="$folder/test"
fi

step "one person of the test split"
if [ ! -e "$folder/person" ]; then
  person=$(python - "$folder" <<'END'
import csv, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
test = set(json.loads((folder / "data/split.json").read_text())["test"])
rows = csv.DictReader((folder / "phantoms/cohort.csv").open())
covid = [row for row in rows if row["patient_id"] in test and row["label"] == "COVID-19"]
print(folder / "phantoms" / covid[0]["path"])
END
  )
  python -m drenet_jax.predict --workdir="$folder/run" --input="$person" --out="$folder/person"
fi

step "done"
python - "$folder/test/metrics.json" <<'END'
import json, sys
metrics = json.load(open(sys.argv[1]))
auc = metrics["person"]["auc"]
# Without any error there is no interval.
interval = "no interval" if auc["low"] is None else f"95% {auc['low']:.3f} to {auc['high']:.3f}"
positive, value = metrics["positive"], auc["value"]
print(f"person AUC of the test split, {positive} against the rest: {value:.3f} ({interval})")
END
echo "open the evaluation:  $folder/test/report.html"
echo "open the prediction:  $folder/person/report.html"
