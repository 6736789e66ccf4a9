#!/usr/bin/env bash
# Sets up and runs the default test suite, a part on each of up to four cores; arguments go to
# pytest.
#
#   bash launch/test.sh                 # the default suite
#   bash launch/test.sh -m slow         # the long tests
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/_environment.sh
use_environment '[test]'

ruff format --check --quiet .
ruff check --quiet .
python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadscope "$@"
