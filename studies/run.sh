#!/usr/bin/env bash
# Makes the runs of docs/study.md: the data, the trainings, and the numbers made of them.
#
#   bash studies/run.sh phantoms                # five arms, five seeds each
#   bash studies/run.sh covid_ct covid_ct_160   # DRENET_JAX_COVID_CT=.../manifest.csv
#   bash studies/run.sh page                    # results/ and docs/study.md of all runs that are there
#
# Called again it goes on where it stopped; data and runs lie in WORK (default studies/work).
# WORKERS (default: one a core) processes work at once.
set -euo pipefail
: "${1:?which data? see the head of studies/run.sh}"
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(realpath -m "${WORK:-$repository/studies/work}")
cd "$repository"
if [ -n "${DRENET_JAX_PYTHON:-}" ]; then
  python() { "$DRENET_JAX_PYTHON" "$@"; }  # one that has the package already
else
  # shellcheck source=launch/_environment.sh
  . launch/_environment.sh
  use_environment '[pretrained]'
fi
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}

if [ "$1" = page ]; then
  python -m studies.results --work="$work"
  python -m studies.page
else
  python -m studies.runs "$@" --work="$work" --workers="${WORKERS:-$(nproc)}"
fi
