#!/usr/bin/env bash
# Trains on the GPUs of several machines under Slurm, through preemptions and time limits.
#
#   sbatch [--nodes=4 --gpus-per-node=8 --time=12:00:00 --partition=...] launch/gpu/slurm.sh \
#     --config=configs/drenet.py --config.data.dir=/shared/data --workdir=/shared/runs/mine
#   bash launch/gpu/slurm.sh --dry_run --config=... --workdir=...     prints the commands
#
# Submit it from the root of the checkout, which all nodes must see at the same path, as they must
# see the data and the workdir. The requested resources are below; flags of sbatch precede the script.
# One process a node drives all the GPUs of that node. Two minutes before the time limit, and when
# Slurm preempts the job, training saves and ends with exit code 75; the job is then requeued
# and resumes. Any other failure ends the job, and so does scancel. With a time limit that is used up
# before the first step, the job would be requeued again and again.
#
# Tested on a real Slurm (22.05, two nodes, CPUs in place of the GPUs): tests/test_slurm.py.
#
#SBATCH --job-name=drenet_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
# Slurm runs a copy of this script from another folder.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/../..}"
if [ ! -e launch/_commands.sh ]; then
  echo "error: $PWD is not the root of the checkout; submit launch/gpu/slurm.sh from there." >&2
  exit 2
fi
. launch/_commands.sh

parse_train_flags launch/gpu/slurm.sh "$@"
if [ -z "$dry_run" ] && [ -z "${SLURM_JOB_ID:-}" ]; then
  refuse "this is a job for Slurm; submit it with sbatch, or add --dry_run."
fi
use_python '[cuda12]'
# When the first process has ended, the others have two minutes to end their saving.
step=(srun --kill-on-bad-exit=0 --wait=120 "$python" -m drenet_jax.train "${train_flags[@]}")
if [ -n "$dry_run" ]; then
  # shellcheck disable=SC2016  # as it would be typed
  echo 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
  run "${step[@]}"
  echo "# on SIGTERM, which --signal asks for:"
  # shellcheck disable=SC2016
  echo 'scancel --signal=TERM "$SLURM_JOB_ID"'
  echo "# if training ends with exit code 75:"
  # shellcheck disable=SC2016
  echo 'scontrol requeue "$SLURM_JOB_ID"'
  exit 0
fi

# True once Slurm itself cancels the job or queues it again; it then ends all processes of the job.
is_ending() {
  [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = COMPLETING ]
}

stopping=''
# To the processes of the step: on SIGTERM srun would kill them at once.
trap 'stopping=now; is_ending || scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# Since Slurm 22.05, srun does not take over --cpus-per-task of sbatch, and gives each task one CPU.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
"${step[@]}" &
training=$!
# A signal ends `wait` early.
while code=0; wait "$training" || code=$?; [ "$stopping" = now ]; do
  stopping=before
done
# 143: ended by SIGTERM, which training handles from its first step on.
if { [ "$code" = 75 ] || [ "$code" = 143 ]; } && ! is_ending; then
  echo "training was preempted; the job is queued again" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
