#!/usr/bin/env bash
# A Cloud TPU from creation to deletion, by gcloud. To train through preemptions use
# launch/cloud/sky-tpu.yaml.
#
#   bash launch/tpu/tpu.sh create  --name=N --zone=Z --type=v6e-8 [--spot] [--project=P]
#   bash launch/tpu/tpu.sh install --name=N --zone=Z
#   bash launch/tpu/tpu.sh train   --name=N --zone=Z -- FLAGS OF TRAIN
#   bash launch/tpu/tpu.sh delete  --name=N --zone=Z [--spot]
#
# create    requests a TPU VM, or with --spot a queued spot resource, which is granted when there is
#           capacity and may be preempted at any time. IT COSTS MONEY UNTIL `delete`.
# install   copies the committed state of this checkout to all workers and installs it there.
# train     runs drenet_jax.train on all workers; called again, training resumes. --config.data.dir
#           and --workdir are gs:// addresses: the workers share no disk, and `delete` removes theirs.
# delete    deletes the TPU with its disks.
#
#   --name       of the TPU, and of its queued resource
#   --type       accelerator type, such as v6e-8, v5litepod-16, v5p-8 or v4-8
#   --runtime    software version; if not given, the one that fits --type
#   --project    if not given, gcloud's
#   --dry_run    prints the commands and runs none
#
# Needs the gcloud CLI, logged in. Run it in tmux or the like, so that a lost connection does not end
# it. TPU7x and later are not supported (they are available through GKE and Compute Engine).
set -euo pipefail
cd "$(dirname "$0")/../.."
. launch/_commands.sh

action=${1:-}
case $action in
  --help | '') help_of launch/tpu/tpu.sh; [ -n "$action" ] && exit 0; refuse "no command is given." ;;
  create | install | train | delete) shift ;;
  *) refuse "the command '$action' is not known; use create, install, train or delete." ;;
esac

name='' zone='' type='' runtime='' spot='' project=()
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
if [ "$action" = train ]; then
  [ ${#train_flags[@]} -gt 0 ] || refuse "train needs -- and the flags of drenet_jax.train."
fi

# https://cloud.google.com/tpu/docs/runtimes, read in November 2026.
find_runtime() {
  case $type in
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
    *) refuse "no software version is known for --type=$type; give it as --runtime." ;;
  esac
}

create() {
  need --type "$type"
  [ -n "$runtime" ] || find_runtime
  if [ -n "$spot" ]; then
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" \
      --accelerator-type="$type" --runtime-version="$runtime" --spot "${where[@]}"
  else
    run gcloud compute tpus tpu-vm create "$name" \
      --accelerator-type="$type" --version="$runtime" "${where[@]}"
  fi
  [ -n "$dry_run" ] || echo "$name costs money until: bash launch/tpu/tpu.sh delete $(shown \
    --name="$name" "${where[@]}" ${spot:+--spot})" >&2
}

on_all_workers() { # SHELL COMMAND
  # Kept alive, since training may print nothing for a while.
  run gcloud compute tpus tpu-vm ssh "$name" --worker=all --ssh-flag=-oServerAliveInterval=60 \
    "${where[@]}" --command="$1"
}

install() {
  local archive=${TMPDIR:-/tmp}/drenet_jax.tar.gz
  run git archive --format=tar.gz --output="$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:drenet_jax.tar.gz" --worker=all "${where[@]}"
  on_all_workers "rm -rf drenet_jax && mkdir drenet_jax && tar -xzf drenet_jax.tar.gz -C drenet_jax \
&& cd drenet_jax && bash launch/cloud/install.sh tpu"
}

train() {
  on_all_workers "cd drenet_jax && .venv/bin/python -m drenet_jax.train $(shown "${train_flags[@]}")"
}

delete() {
  if [ -n "$spot" ]; then
    run gcloud compute tpus queued-resources delete "$name" --force --quiet "${where[@]}"
  else
    run gcloud compute tpus tpu-vm delete "$name" --quiet "${where[@]}"
  fi
}

"$action"
