#!/usr/bin/env bash
# Makes a study of docs/study.md: its data, its runs, and the figures made of them.
#
#   bash studies/run.sh smallest     # DRENet and ResNet, five seeds each; compares with the committed
#                                    # figures
#   bash studies/run.sh phantoms     # the main table
#   bash studies/run.sh persons      # how results grow with the number of training persons
#   bash studies/run.sh shift        # from site A to site B, before and after fine-tuning
#   bash studies/run.sh covid_ct     # needs COVID-CT: DRENET_JAX_COVID_CT=.../manifest.csv
#   bash studies/run.sh long         # more steps, on more phantoms and on COVID-CT (needs it, too)
#   bash studies/run.sh full_size    # ResNet50 at 448 pixels; for a GPU. STEPS=2 for a trial
#   bash studies/run.sh page         # results/ and docs/study.md of all runs that are there
#
# Called again it goes on where it stopped; data and runs lie in WORK (default studies/work).
# WORKERS (default: one a core) processes work at once.
set -euo pipefail
study=${1:?which study? see the head of studies/run.sh}
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(realpath -m "${WORK:-$repository/studies/work}")
cd "$repository"
if [ -n "${DRENET_JAX_PYTHON:-}" ]; then
  python() { "$DRENET_JAX_PYTHON" "$@"; }  # one that has the package already
else
  # shellcheck source=launch/_environment.sh
  . launch/_environment.sh
  use_environment ''
fi
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
workers=${WORKERS:-$(nproc)}

case $study in
  full_size)
    python -m studies.full_size --work="$work" --workers="$workers" --steps="${STEPS:-0}"
    ;;
  page)
    python -m studies.collect --work="$work"
    python -m studies.page
    ;;
  *)
    python -m studies.runs "$study" --work="$work" --workers="$workers"
    python -m studies.collect "$study" --work="$work" --check
    ;;
esac
