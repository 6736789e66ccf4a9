#!/usr/bin/env bash
# Trains on all GPUs of this machine, and restarts after preemptions until the run ends.
#
#   bash launch/gpu/train.sh --config=configs/drenet.py --config.data.dir=data/mine \
#     --workdir=runs/mine [any flag of drenet_jax.train] [--dry_run]
#
# Needs an NVIDIA driver for CUDA 12; everything else is installed into an environment of this checkout.
# If training receives SIGTERM, it saves, ends with exit code 75 and is restarted.
# If this script receives SIGTERM or Ctrl-C, training saves and both end with 75; call
# it again to resume. Any other failure ends it with training's exit code.
#
# --dry_run prints the commands and runs none.
set -euo pipefail
cd "$(dirname "$0")/../.."
. launch/_commands.sh

parse_train_flags launch/gpu/train.sh "$@"
use_python '[cuda12]'
command=("$python" -m drenet_jax.train "${train_flags[@]}")
if [ -n "$dry_run" ]; then
  run "${command[@]}"
  echo "# as long as that ends with exit code 75: the same again"
  exit 0
fi

stopping=''
trap 'stopping=now; kill -TERM "$training" 2>/dev/null || true' TERM INT
while :; do
  # In the background, since bash handles no signal while it waits for a foreground command.
  "${command[@]}" &
  training=$!
  # A signal ends `wait` early.
  while code=0; wait "$training" || code=$?; [ "$stopping" = now ]; do
    stopping=before
  done
  if [ "$code" != 75 ] || [ -n "$stopping" ]; then
    exit "$code"
  fi
  echo "training was preempted; it goes on" >&2
done
