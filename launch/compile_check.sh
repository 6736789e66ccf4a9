#!/usr/bin/env bash
# Compiles prediction, explanation and training step of configs/drenet.py, in bfloat16, for GPUs and
# TPUs, on a machine without them.
#
#   bash launch/compile_check.sh [--gpu=h100] [--tpu=v5e-4] [--batch=16] [--out=FOLDER] [--page]
#
#   --gpu, --tpu   targets, separated by commas (python -m drenet_jax.benchmark --help lists them); empty: none
#   --batch        slices on each device
#   --out          a folder that gets gpu.json and tpu.json
#   --page         write the results to docs/accelerators/, and the tables of docs/accelerators.md
#
# Makes an environment for each compiler (about 6 GB each). Takes about 5 minutes for a GPU and 20
# for a TPU, on two cores. Ends with exit code 0 if all was compiled.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/_commands.sh
. launch/_environment.sh

gpu=h100 tpu=v5e-4 batch=16 out='' page=''
for argument in "$@"; do
  case $argument in
    --help) help_of launch/compile_check.sh; exit 0 ;;
    --gpu=*) gpu=${argument#*=} ;;
    --tpu=*) tpu=${argument#*=} ;;
    --batch=*) batch=${argument#*=} ;;
    --out=*) out=${argument#*=} ;;
    --page) page=1 ;;
    *) refuse "the argument '$argument' is not known; see bash launch/compile_check.sh --help." ;;
  esac
done
[ -z "$page" ] || [ -z "$out" ] || refuse "--page writes to docs/accelerators; omit --out."

folder=${out:-$(mktemp -d)}
mkdir -p "$folder"
compile() { # EXTRA TARGETS FILE
  [ -n "$2" ] || return 0
  (
    use_environment "[$1]"
    python -m drenet_jax.benchmark --suite=compile --target="$2" --batch="$batch" --out="$3"
  )
}
compile cuda12 "$gpu" "$folder/gpu.json"
compile tpu "$tpu" "$folder/tpu.json"

if [ -n "$page" ]; then
  results=()
  for name in gpu tpu; do
    if [ -e "$folder/$name.json" ]; then
      mv "$folder/$name.json" "docs/accelerators/$name.json"
    fi
    results+=("docs/accelerators/$name.json")
  done
  use_environment "$([ -n "$gpu" ] && echo '[cuda12]' || echo '[tpu]')"
  python -m drenet_jax.benchmark --suite=compile --target= --page=docs/accelerators.md \
    --results="$(IFS=,; echo "${results[*]}")"
fi
[ -n "$out" ] || rm -rf "$folder"
