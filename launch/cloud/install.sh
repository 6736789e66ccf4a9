#!/usr/bin/env bash
# Installs this checkout on a cloud machine, with what it needs for gs:// and s3://, into .venv.
#
#   bash launch/cloud/install.sh cuda12      on NVIDIA GPUs
#   bash launch/cloud/install.sh tpu         on a TPU VM
#
# Needs Python with pip, of any version: uv downloads another where that is not 3.11 to 3.13.
set -euo pipefail
cd "$(dirname "$0")/../.."
. launch/_commands.sh

case ${1:-} in
  --help) help_of launch/cloud/install.sh; exit 0 ;;
  cuda12 | tpu) ;;
  *) refuse "'${1:-}' is not known; use cuda12 or tpu." ;;
esac

# A checkout that came through a bucket, as SkyPilot sends it, has lost its symbolic links.
[ -e drenet_jax/configs ] || ln -s ../configs drenet_jax/configs

# Newer Debians and Ubuntus would refuse; older versions of pip do not know it as a flag.
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python='>=3.11,<3.14' .venv
python3 -m uv pip install --quiet --python=.venv/bin/python \
  --constraint=launch/constraints.txt --editable=".[$1,cloud]"
