#!/usr/bin/env bash
# A Cloud TPU from creation to deletion.
#
#   bash launch/tpu/tpu.sh create  --name=N --zone=Z --type=v6e-8 [--spot] [--project=P]
#   bash launch/tpu/tpu.sh install --name=N --zone=Z [--share=SERVER:/FOLDER]
#   bash launch/tpu/tpu.sh train   --name=N --zone=Z -- FLAGS OF TRAIN
#   bash launch/tpu/tpu.sh resume  --name=N --zone=Z --type=v6e-8 --share=SERVER:/FOLDER --spot \
#     -- FLAGS OF TRAIN
#   bash launch/tpu/tpu.sh delete  --name=N --zone=Z [--spot]
#
# create    requests a TPU VM, or with --spot a queued spot resource, which is granted when there is
#           capacity and may be preempted at any time. IT COSTS MONEY UNTIL `delete`.
# install   copies the committed state of this checkout to all workers and installs it there.
# train     runs drenet_jax.train on all workers; called again, training resumes.
# resume    does all of this until training has ended: creates the spot resource if there is none,
#           waits for it, installs, trains, and starts over after each preemption. It is the only
#           command that spends money by itself; Ctrl-C ends this script, not the TPU.
# delete    deletes the TPU with its disks. Apart from it only `resume` deletes: a preempted resource
#           before it requests the next one.
#
#   --name       of the TPU, and of its queued resource
#   --type       accelerator type, such as v6e-8, v5litepod-16, v5p-8 or v4-8
#   --runtime    software version; if not given, the one that fits --type
#   --share      an NFS share in the TPU's network (a Filestore, say), which all workers mount at
#                /mnt/share. Data and workdir must be there if there is more than one worker or
#                the TPU is spot, since its disks are deleted with it. Your user must have
#                write access.
#   --project    if not given, gcloud's
#   --dry_run    prints the commands and runs none
#
# Needs the gcloud CLI, logged in. Run it in tmux or the like, so that a lost connection does not end
# it. TPU7x and later are not supported (they are available through GKE and Compute Engine).
set -euo pipefail
cd "$(dirname "$0")/../.."
. launch/_commands.sh

SECONDS_BETWEEN_LOOKS=${SECONDS_BETWEEN_LOOKS:-60}

action=${1:-}
case $action in
  --help | '') help_of launch/tpu/tpu.sh; [ -n "$action" ] && exit 0; refuse "no command is given." ;;
  create | install | train | resume | delete) shift ;;
  *) refuse "the command '$action' is not known; use create, install, train, resume or delete." ;;
esac

name='' zone='' type='' runtime='' share='' spot='' project=()
train_flags=()
# At any position, also after --: a dry run must not spend money.
for argument in "$@"; do
  [ "$argument" != --dry_run ] || dry_run=1
done
while [ $# -gt 0 ]; do
  case $1 in
    --help) help_of launch/tpu/tpu.sh; exit 0 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --share=*) share=${1#*=} ;;
    --project=*) project=("$1") ;;
    --spot) spot=1 ;;
    --dry_run) ;;
    --) shift; break ;;
    *) refuse "the argument '$1' is not known; see bash launch/tpu/tpu.sh --help." ;;
  esac
  shift
done
for argument in "$@"; do
  [ "$argument" = --dry_run ] || train_flags+=("$argument")
done

need() { # FLAG VALUE
  [ -n "$2" ] || refuse "$action needs $1; see bash launch/tpu/tpu.sh --help."
}

need --name "$name"
need --zone "$zone"
where=(--zone="$zone" "${project[@]}")
case $action in
  create | resume) need --type "$type" ;;
esac
case $action in
  train | resume)
    [ ${#train_flags[@]} -gt 0 ] || refuse "$action needs -- and the flags of drenet_jax.train." ;;
esac
if [ "$action" = resume ]; then
  need --share "$share"
  need --spot "$spot"
fi
if [ -n "$share" ] && [[ ! $share =~ ^[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*$ ]]; then
  refuse "--share=$share must be SERVER:/FOLDER."
fi
# https://cloud.google.com/tpu/docs/runtimes, read in November 2026.
if [ -n "$type" ] && [ -z "$runtime" ]; then
  case $type in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    *) refuse "no software version is known for --type=$type; give it as --runtime." ;;
  esac
fi

create() {
  if [ -n "$spot" ]; then
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" \
      --accelerator-type="$type" --runtime-version="$runtime" --spot "${where[@]}"
  else
    run gcloud compute tpus tpu-vm create "$name" \
      --accelerator-type="$type" --version="$runtime" "${where[@]}"
  fi
}

on_all_workers() { # SHELL COMMAND
  # Kept alive, since training may print nothing for a while.
  run gcloud compute tpus tpu-vm ssh "$name" --worker=all --ssh-flag=-oServerAliveInterval=60 \
    "${where[@]}" --command="$1"
}

install() {
  local archive
  archive=${TMPDIR:-/tmp}/drenet_jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD || return
  run gcloud compute tpus tpu-vm scp "$archive" "$name:drenet_jax.tar.gz" --worker=all \
    "${where[@]}" || return
  local setup='set -e'
  if [ -n "$share" ]; then
    setup+='; sudo apt-get -qq update; sudo apt-get -qq install -y nfs-common'
    setup+="; sudo mkdir -p /mnt/share; mountpoint -q /mnt/share || sudo mount $share /mnt/share"
  fi
  setup+='; rm -rf drenet_jax; mkdir drenet_jax; tar -xzf drenet_jax.tar.gz -C drenet_jax'
  # The images come with Python 3.10.
  setup+='; python3 -m pip install --quiet --user uv; cd drenet_jax'
  setup+='; python3 -m uv venv --quiet --python=3.12 .venv'
  setup+='; python3 -m uv pip install --quiet --python=.venv/bin/python'
  setup+=' --constraint=launch/constraints.txt --editable=.[tpu]'
  on_all_workers "$setup"
}

train() {
  # Compiled programs survive a preemption there, and all workers find them.
  local cache='! mountpoint -q /mnt/share || export JAX_COMPILATION_CACHE_DIR=/mnt/share/drenet_jax_xla'
  on_all_workers "$cache; cd drenet_jax && .venv/bin/python -m drenet_jax.train $(shown "${train_flags[@]}")"
}

delete() {
  if [ -n "$spot" ]; then
    run gcloud compute tpus queued-resources delete "$name" --force --quiet "${where[@]}"
  else
    run gcloud compute tpus tpu-vm delete "$name" --quiet "${where[@]}"
  fi
}

# Prints the state of the queued resource; nothing if there is none, which `describe` does not
# distinguish from a failed connection.
look() {
  run gcloud compute tpus queued-resources list "${where[@]}" \
    --filter="name~/queuedResources/$name\$" --format='value(state.state)'
}

still_costs() {
  echo "$name costs money until: bash launch/tpu/tpu.sh delete $(shown --name="$name" \
    "${where[@]}" ${spot:+--spot})" >&2
}

resume() {
  local now code
  now=$(look)
  while :; do
    echo "queued resource $name: ${now:-not there}" >&2
    case $now in
      '') create ;;
      SUSPENDED | FAILED) delete ;;
      ACTIVE)
        code=0
        { install && train; } || code=$?
        if [ "$code" = 0 ]; then
          echo "training has ended." >&2
          return
        fi
        # A preemption is reported with a delay.
        sleep "$SECONDS_BETWEEN_LOOKS"
        if [ "$code" != 75 ] && [ "$(look)" = ACTIVE ]; then
          echo "error: it ended with exit code $code, and not by a preemption." >&2
          return "$code"
        fi
        ;;
      *) sleep "$SECONDS_BETWEEN_LOOKS" ;;
    esac
    until now=$(look); do
      sleep "$SECONDS_BETWEEN_LOOKS"
    done
  done
}

case $action in
  create)
    create
    [ -n "$dry_run" ] || still_costs
    ;;
  resume)
    if [ -n "$dry_run" ]; then
      look
      echo "# if there is none:"
      create
      echo "# if it is SUSPENDED or FAILED, as after a preemption; then from the beginning:"
      delete
      echo "# if it is ACTIVE; from the beginning again if a preemption (exit code 75) ended it:"
      install
      train
      echo "# otherwise, after $SECONDS_BETWEEN_LOOKS seconds: from the beginning"
    else
      trap still_costs EXIT
      resume
    fi
    ;;
  *) "$action" ;;
esac
