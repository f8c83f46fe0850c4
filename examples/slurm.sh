#!/bin/bash
# Pre-train on several nodes under SLURM, through preemptions and time limits:
#
#     sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 slurm.sh speech/v2-base runs/speech data.train=/data/speech
#
# One task per GPU. Before the time limit, or on preemption, every task gets SIGUSR1: all save a checkpoint at the end of the
# current step and exit with a status over 128. The job is then requeued, and its next start resumes the run. The run folder
# must be on a file system that all nodes share.
#SBATCH --job-name=data2vec
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
recipe=$1 run=$2
shift 2

resume=
if [ -f "$run/recipe.yaml" ]; then resume=--resume; fi

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500

# shellcheck disable=SC2016 # the variables differ between tasks
srun bash -c 'export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID; exec "$@"' task \
    data2vec pretrain "$recipe" --out "$run" $resume "$@"
status=$?

if [ "$status" -gt 128 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
