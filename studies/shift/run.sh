#!/usr/bin/env bash
# Does a model trained at one site lose at another, and do ten persons of that site bring it back?
#
#   bash studies/shift/run.sh [FOLDER]      # default: studies/shift/work; 1.5 hours on two busy cores
#
# Three seeds, each with phantoms of its own: 150 persons of site A to train and test on, and of
# site B 10 to fine-tune on and 60 to test on. Nothing of B chooses anything: there is no validation
# split, the settings below were written down before the first result, and the last step counts.
# Called again it goes on where it stopped. The figures go to results.csv beside this file, and from
# there into docs/training.md.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=$(realpath -m "${1:-$repository/studies/shift/work}")
cd "$repository"
if [ -n "${DRENET_JAX_PYTHON:-}" ]; then
  python() { "$DRENET_JAX_PYTHON" "$@"; }  # one that has the package already
else
  # shellcheck source=launch/_environment.sh
  . launch/_environment.sh
  use_environment ''
fi

labels=COVID-19,bacterial,healthy

prepared() { # COHORT OUT SEED
  if [ ! -e "$2" ]; then
    python -m drenet_jax.prepare --cohort="$1" --out="$2" --seed="$3" --labels="$labels" \
      --config.image_size_px=160
  fi
}

trained() { # DATA WORKDIR SEED FLAGS...: until the last step
  python -m drenet_jax.train --config=configs/demo.py --config.data.dir="$1" --workdir="$2" \
    --config.seed="$3" "${@:4}"
}

# Few steps with a tenth of the learning rate: 20 passes over some 80 slices.
few=(
  --config.optimizer.learning_rate=2e-4 --config.optimizer.decay_epochs='(12, 16)'
  --config.train.epochs=20 --config.train.validate_every_epochs=20
)
# From nothing: the demo's learning rate, and three times the steps.
nothing=(
  --config.optimizer.decay_epochs='(40, 52)' --config.train.epochs=60
  --config.train.validate_every_epochs=60
)

score() { # WORKDIR DATA OUT
  if [ ! -e "$3" ]; then
    python studies/shift/shift.py score --workdir="$1" --data="$2" --out="$3"
  fi
}

for seed in 0 1 2; do
  here=$folder/$seed
  mkdir -p "$here"
  if [ ! -e "$here/a" ]; then
    python -m drenet_jax.synthesize --out="$here/a" --persons=150 --seed="$seed" --site=A
  fi
  if [ ! -e "$here/b" ]; then
    python -m drenet_jax.synthesize --out="$here/b" --persons=70 --seed=$((100 + seed)) --site=B
  fi
  python studies/shift/shift.py split --cohort="$here/b/cohort.csv" --out="$here/b/split.csv"
  prepared "$here/a/cohort.csv" "$here/a_data" "$seed"
  prepared "$here/b/split.csv" "$here/b_data" "$seed"

  trained "$here/a_data" "$here/a_run" "$seed"
  score "$here/a_run" "$here/a_data" "$here/a_on_a.csv"
  score "$here/a_run" "$here/b_data" "$here/a_on_b.csv"

  trained "$here/b_data" "$here/ab_run" "$seed" "${few[@]}" --config.init.weights="$here/a_run"
  score "$here/ab_run" "$here/b_data" "$here/ab_on_b.csv"
done

for seed in 0 1 2; do
  here=$folder/$seed
  trained "$here/b_data" "$here/b_run" "$seed" "${nothing[@]}"
  score "$here/b_run" "$here/b_data" "$here/b_on_b.csv"
done

python studies/shift/shift.py results --folder="$folder" --out=studies/shift/results.csv
python studies/shift/shift.py table --results=studies/shift/results.csv --page=docs/training.md
