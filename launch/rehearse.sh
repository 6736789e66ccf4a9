#!/usr/bin/env bash
# Tests training on several hosts on this machine: two processes with four virtual CPU devices each,
# connected over loopback, must get the weights that one process with eight gets.
#
#   bash launch/rehearse.sh        prints PASS or FAIL; the exit code is 0 or 1
#
# It synthesizes twelve phantoms, prepares them and trains a very small DRENet for three steps each way.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/_commands.sh
if [ "${1:-}" = --help ]; then
  help_of launch/rehearse.sh
  exit 0
fi
[ $# = 0 ] || refuse "the argument '$1' is not known; rehearse.sh takes none."
use_python ''

folder=$(mktemp -d)
running=()
failed=''
clean_up() {
  [ ${#running[@]} = 0 ] || kill "${running[@]}" 2>/dev/null || true
  [ -n "$failed" ] || rm -rf "$folder"
}
trap clean_up EXIT
export JAX_PLATFORMS=cpu

fail() { # SENTENCE [LOG...]
  failed=1
  [ $# = 1 ] || tail -n 20 "${@:2}" >&2
  echo "FAIL: $1 (see $folder)"
  exit 1
}

limited=(timeout --kill-after=10 600 "$python" -m)
# SGD, since AdamW divides by the gradients' magnitude, which amplifies rounding differences.
train=("${limited[@]}" drenet_jax.train --config=configs/drenet.py
  --config.data.dir="$folder/data" --config.train.steps=3 --config.train.accumulate=1
  --config.model.backbone=resnet18 --config.model.width=4 --config.model.image_size_px=96
  --config.model.crop_size_px=32 --config.model.anchor_sizes_px='(24, 40)'
  --config.model.train_proposals='(2,)' --config.model.top_k='(2,)' --config.model.nms_iou=0.5
  --config.model.hidden='(8,)')
devices=--xla_force_host_platform_device_count

echo "twelve phantoms, prepared"
"${limited[@]}" drenet_jax.synthesize --out="$folder/phantoms" --persons=12 --size=96 >"$folder/log" 2>&1 \
  || fail "the phantoms were not drawn" "$folder/log"
"${limited[@]}" drenet_jax.prepare --cohort="$folder/phantoms/cohort.csv" --out="$folder/data" \
  --config.image_size_px=96 --fractions=50,25,25 >"$folder/log" 2>&1 \
  || fail "the phantoms were not prepared" "$folder/log"

echo "one process with eight devices"
XLA_FLAGS=$devices=8 "${train[@]}" --workdir="$folder/one" >"$folder/log" 2>&1 \
  || fail "one process did not train" "$folder/log"

echo "two processes with four devices each"
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# Only the first process writes to the cache of compiled programs, and would be ahead by more than the
# 30 seconds that Gloo, JAX's transport between CPUs, waits for the others.
for i in 0 1; do
  JAX_ENABLE_COMPILATION_CACHE=false XLA_FLAGS=$devices=4 "${train[@]}" --workdir="$folder/two" --num_processes=2 \
    --process_id="$i" --coordinator="127.0.0.1:$port" >"$folder/log$i" 2>&1 &
  running+=($!)
done
for i in 0 1; do
  wait "${running[$i]}" || fail "process $i of two did not train" "$folder/log0" "$folder/log1"
done
running=()

"$python" - "$folder/one" "$folder/two" <<'END_OF_PYTHON' || fail "the weights differ"
import sys

import jax
import numpy as np

from drenet_jax.models.build import build_model, variable_shapes
from drenet_jax.models.checkpoints import Checkpoints


def weights(workdir):
    with Checkpoints.of(workdir, flag="workdir") as checkpoints:
        step = checkpoints.latest_step
        assert step == 3, step
        meta = checkpoints.meta(step)
        return checkpoints.weights(step, variable_shapes(build_model(meta.config, len(meta.labels))))


one, two = (jax.tree.leaves(weights(workdir)) for workdir in sys.argv[1:])
worst = max(np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(one, two) if a.any())
print(f"largest relative difference of a weight array after three steps: {worst:.1e}")
sys.exit(not worst < 1e-4)
END_OF_PYTHON
echo "PASS"
