#!/usr/bin/env bash
# The best recipe of docs/study.md on COVID-CT: prepares, trains, and evaluates on the published
# validation part.
#
#   bash studies/covid_ct.sh FOLDER [OUT]       # default of OUT: covid_ct
#
# FOLDER is COVID-CT as published (unpacked), or holds a cohort file manifest.csv with the labels
# covid and non_covid. The published test part, listed in a cohort file of its own, is then scored by
#
#   python -m drenet_jax.prepare --cohort=TEST.csv --out=TEST --labels=LABELS \
#     --config.image_size_px=224
#   python -m drenet_jax.evaluate --workdir=OUT/run --data=TEST --split=test --out=OUT/test
#
# Called again with the same OUT, it resumes.
set -euo pipefail
folder=$(realpath "${1:?which folder holds COVID-CT? see the head of studies/covid_ct.sh}")
out=$(realpath -m "${2:-covid_ct}")
cd "$(dirname "$0")/.."
. launch/_environment.sh
use_environment '[pretrained]'

mkdir -p "$out"

step() { echo; echo "== $*"; }

if [ -f "$folder/manifest.csv" ]; then
  cohort=$folder/manifest.csv labels=non_covid,covid
else
  cohort=$out/cohort.csv labels='not COVID-19,COVID-19'
  step "the cohort"
  if [ ! -e "$cohort" ]; then
    python -m drenet_jax.cohort --dataset=covid_ct --root="$folder" --out="$cohort"
  fi
fi

step "preparation: slices, lungs, records"
if [ ! -e "$out/data" ]; then
  python -m drenet_jax.prepare --cohort="$cohort" --out="$out/data" --labels="$labels" \
    --config.image_size_px=224
fi

step "training"
python -m drenet_jax.train --config=configs/covid_ct.py --workdir="$out/run" \
  --config.data.dir="$out/data"

step "evaluation of the published validation part"
if [ ! -e "$out/validation" ]; then
  python -m drenet_jax.evaluate --workdir="$out/run" --split=validation --out="$out/validation"
fi

step "done"
echo "open the evaluation:  $out/validation/report.html"
echo "the labels of a cohort file of other images: $labels"
