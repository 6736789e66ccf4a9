#!/usr/bin/env bash
# Builds the image of the server and runs it.
#
#   DRENET_TOKEN=... bash launch/docker/serve.sh --workdir=runs/mine [--host=127.0.0.1] \
#     [--port=8000] [any other flag of drenet_jax.serve] [--dry_run]
#
# Needs Docker with BuildKit. --host and --port are where this machine listens; others reach it with
# --host=0.0.0.0. The API requires the token in DRENET_TOKEN, even on this machine, since the server
# cannot see from its container where requests come from; make one with: openssl rand -hex 32. The
# run's folder is mounted read-only. Ctrl-C ends the server and deletes all uploads and results.
#
# --dry_run prints the commands and runs none.
set -euo pipefail
calls_from=$PWD
cd "$(dirname "$0")/../.."
. launch/_commands.sh

workdir='' host=127.0.0.1 port=8000 serve_flags=()
for flag in "$@"; do
  case $flag in
    --help) help_of launch/docker/serve.sh; exit 0 ;;
    --dry_run) dry_run=1 ;;
    --workdir=*) workdir=${flag#*=} ;;
    --host=*) host=${flag#*=} ;;
    --port=*) port=${flag#*=} ;;
    --token_file=*) refuse "the container cannot read $flag; give the token in DRENET_TOKEN." ;;
    --*) serve_flags+=("$flag") ;;
    *) refuse "the argument '$flag' is not a flag; flags are written --name=value." ;;
  esac
done
[ -n "$workdir" ] || refuse "--workdir is missing; see bash launch/docker/serve.sh --help."
[[ $workdir == /* ]] || workdir=$calls_from/$workdir
[ -d "$workdir" ] || refuse "--workdir=$workdir is no folder; name the folder of a run."
[[ $workdir != *:* ]] || refuse "--workdir=$workdir has a colon, which Docker cannot mount."
[ -n "${DRENET_TOKEN:-}" ] || refuse "DRENET_TOKEN is not set; make one with: openssl rand -hex 32."

run docker build --file=launch/docker/Dockerfile --tag=drenet_jax_serve .
# By its name, since its value would be visible in the list of processes.
command=(docker run --rm --init --name="drenet_jax_serve_$port"
  --user="$(id -u):$(id -g)" --cap-drop=ALL --security-opt=no-new-privileges
  --publish="$host:$port:8000" --volume="$workdir:/run/model:ro" --env=DRENET_TOKEN
  drenet_jax_serve "${serve_flags[@]}")
if [ -n "$dry_run" ]; then
  run "${command[@]}"
  exit 0
fi
exec "${command[@]}"
