# shellcheck shell=bash
# Sourced by the launchers: what they print, what they run, what they refuse.

# Set to 1 to print commands instead of running them.
dry_run=''

# The comment at the head of a script is its help.
help_of() { # SCRIPT
  awk 'NR > 1 && /^#SBATCH/ { next } NR > 1 && /^#/ { sub(/^# ?/, ""); print; next } NR > 1 { exit }' "$1"
}

refuse() { # SENTENCE
  echo "error: $*" >&2
  exit 2
}

# A command as one would type it.
shown() { # COMMAND...
  local word line=''
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]]; then
      word=${word@Q}
    fi
    line+="${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# Runs a command, or prints it.
run() { # COMMAND...
  if [ -n "$dry_run" ]; then
    shown "$@"
  else
    "$@"
  fi
}

# Makes `python` of this checkout's environment the one to use; where DRENET_JAX_PYTHON names a
# Python that has the packages already, that one. Sets $python.
use_python() { # EXTRAS
  if [ -n "${DRENET_JAX_PYTHON:-}" ]; then
    python=$DRENET_JAX_PYTHON
    return
  fi
  # shellcheck source=launch/_environment.sh
  . launch/_environment.sh
  [ -z "$dry_run" ] || echo '. launch/_environment.sh'
  run use_environment "$1"
  # shellcheck disable=SC2034  # for the caller
  python=python
}

# Takes --dry_run and --help out of a launcher's arguments; the rest is left in $train_flags. Refuses
# what `train` could not do without.
parse_train_flags() { # SCRIPT ARGUMENTS...
  local script=$1 flag name
  shift
  train_flags=()
  for flag in "$@"; do
    case $flag in
      --help) help_of "$script"; exit 0 ;;
      --dry_run) dry_run=1 ;;
      --*) train_flags+=("$flag") ;;
      *) refuse "the argument '$flag' is not a flag; flags are written --name=value." ;;
    esac
  done
  for name in config workdir; do
    if [[ " ${train_flags[*]} " != *" --$name="* ]]; then
      refuse "--$name is missing; see bash ${script#./} --help."
    fi
  done
}
