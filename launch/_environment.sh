# shellcheck shell=bash
# Sourced by the launchers: makes the virtual environment of this checkout, or reuses it.
#
#   use_environment EXTRAS     e.g. use_environment '[test]'
#
# The environment lies outside the checkout, under $DRENET_JAX_VENVS (default
# ~/.cache/drenet_jax/venvs), named by the hash of the dependency files, so that a change of them
# makes a new one. Versions are those of launch/constraints.txt. Afterwards `python` is that
# environment's, and uses huge pages where Linux grants them.

choose_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 to 3.13 was found; install one, or name it: PYTHON=/path/to/python" >&2
  return 1
}

# A training step on CPU allocates and frees gigabytes; in pages of 4 kB it takes 15% longer
# (docs/performance.md). glibc reads the setting when a process starts. A GLIBC_TUNABLES that is set
# already, empty or not, is kept.
# shellcheck disable=SC2120 # a test passes another file
use_huge_pages() {
  if grep -qs '\[madvise\]' "${1:-/sys/kernel/mm/transparent_hugepage/enabled}"; then
    export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
  fi
}

use_environment() {
  local extras=$1 repository python key folder
  repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  # shellcheck disable=SC2119
  use_huge_pages
  python=$(choose_python) || return 1
  key=$( (cat "$repository/setup.py" "$repository/pyproject.toml" \
    "$repository/launch/constraints.txt"; echo "$extras"; "$python" --version) \
    | git hash-object --stdin)
  folder=${DRENET_JAX_VENVS:-${XDG_CACHE_HOME:-$HOME/.cache}/drenet_jax/venvs}/${key:0:12}

  if [ ! -e "$folder/complete" ]; then
    echo "making a virtual environment in $folder (about 3 GB, some minutes)" >&2
    rm -rf "$folder"
    "$python" -m venv "$folder" || return 1
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
      --constraint "$repository/launch/constraints.txt" --editable "$repository$extras" || return 1
    touch "$folder/complete"
  fi
  # shellcheck disable=SC1091
  . "$folder/bin/activate"
  # The environment may have been made for another checkout with the same dependencies.
  if [ "$(cd / && python -c 'import drenet_jax; print(drenet_jax.__path__[0])' 2>/dev/null)" != \
    "$repository/drenet_jax" ]; then
    python -m pip install --quiet --disable-pip-version-check --no-deps --editable "$repository" \
      || return 1
  fi
}
