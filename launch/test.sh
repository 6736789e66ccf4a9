#!/usr/bin/env bash
# Checks format, lint, types and documentation, and runs the default test suite on up to four cores;
# arguments go to pytest.
#
#   bash launch/test.sh                 # the default suite
#   bash launch/test.sh -m slow         # the long tests
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/_environment.sh
use_environment '[test,docs]'

ruff format --check --quiet .
ruff check --quiet .
mypy --no-error-summary
NO_MKDOCS_2_WARNING=1 mkdocs build --quiet
python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadscope "$@"
