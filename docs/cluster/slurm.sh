#!/bin/bash
# Train on the GPUs of several nodes with Slurm. The arguments are those of `retinanet-jax train`:
#   sbatch docs/cluster/slurm.sh --config=configs/r50_fpn.py --workdir=/shared/runs/r50_fpn
#SBATCH --job-name=retinanet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8   # a process for each GPU
#SBATCH --gpus-per-node=8     # every process must see all GPUs of its node: no --gpus-per-task
#SBATCH --cpus-per-task=8     # they read and decode the images
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@60      # seconds before the time limit; more if a save takes longer
#SBATCH --requeue             # after preemption, or the loss of a node
#SBATCH --open-mode=append    # a job that is started again continues its log
#SBATCH --output=retinanet-%j.log

trap : TERM  # Slurm may also send this script SIGTERM; it waits for the processes to save
status=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" retinanet-jax train --distributed "$@" || status=$?

# Stopped with everything saved: start the job again, unless it is being canceled.
if [ "$status" -eq 143 ] && [ "$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID")" = RUNNING ]
then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
