#!/usr/bin/env bash
# Measures on one NVIDIA GPU the programs of docs/accelerators.md; about ten minutes.
#
#   bash launch/gpu/measure.sh --out=FOLDER [--batch=16] [--cpu]
#
#   --out     a folder to make
#   --batch   slices in a step
#   --cpu     on the CPU, with a small network, to test the script
#
# FOLDER gets
#   speed.json    training step, prediction and heat maps compared with their bare passes; the parts
#                 of a step, its operations by kind, and its share of the peak
#   parity.json   differences from the CPU in float32
#   run/          200 steps on phantoms: metrics.jsonl, tensorboard/, checkpoints/
#   log           the output
#
# Needs an NVIDIA driver for CUDA 12; everything else is installed into an environment of this checkout,
# unless DRENET_JAX_PYTHON names a Python that has the packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
. launch/_commands.sh

out='' batch=16 cpu=''
for argument in "$@"; do
  case $argument in
    --help) help_of launch/gpu/measure.sh; exit 0 ;;
    --out=*) out=${argument#*=} ;;
    --batch=*) batch=${argument#*=} ;;
    --cpu) cpu=1 ;;
    *) refuse "the argument '$argument' is not known; see bash launch/gpu/measure.sh --help." ;;
  esac
done
[ -n "$out" ] || refuse "--out is missing; see bash launch/gpu/measure.sh --help."
[ ! -e "$out" ] || refuse "--out=$out exists already; name a new folder."

if [ -n "$cpu" ]; then
  use_python ''
  device=cpu config=configs/demo.py steps=5 dtype=float32 size=160
else
  use_python '[cuda12]'
  device=gpu config=configs/drenet_gpu.py steps=200 dtype=bfloat16 size=448
fi
# Speeds of one device are measured.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
mkdir -p "$out"
exec > >(tee "$out/log") 2>&1

benchmark=("$python" -m drenet_jax.benchmark --device="$device" --model="$config" --batch="$batch")
# Parity first: it is short, and the speed of wrong results does not matter.
"${benchmark[@]}" --suite=parity --out="$out/parity.json"
"${benchmark[@]}" --suite=model --profile --dtype="$dtype" --rounds=5 --out="$out/speed.json"

"$python" -m drenet_jax.synthesize --out="$out/phantoms" --persons=24 --size=256
"$python" -m drenet_jax.prepare --cohort="$out/phantoms/cohort.csv" --out="$out/data" \
  --config.image_size_px="$size"
"$python" -m drenet_jax.train --config="$config" --config.data.dir="$out/data" \
  --config.data.batch_size="$batch" --config.train.steps="$steps" --config.train.epochs=1000 \
  --config.train.validate_every_epochs=10 --workdir="$out/run"
