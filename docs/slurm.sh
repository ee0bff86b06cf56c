#!/usr/bin/env bash
# Pre-training on 8 machines with 8 GPUs each under Slurm: sbatch docs/slurm.sh. Not run yet.
# If the job is preempted or its time ends, it saves a checkpoint and is queued again until it is finished.
#SBATCH --job-name=vmae_lab
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

PARAMS=paper/k710
CONFIG=params/accelerate/eight_nodes.yaml
cd "$SLURM_SUBMIT_DIR"
. .venv/bin/activate

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300   # seconds that a step and a checkpoint may take
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # otherwise restarted processes find the addresses of the old ones
export OMP_NUM_THREADS=1
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One launcher per machine; each starts the processes of its machine.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" bash -c "accelerate launch --config_file $CONFIG \
  --num_machines $SLURM_NNODES --num_processes $((SLURM_NNODES * 8)) --machine_rank \$SLURM_NODEID \
  --main_process_ip $first --main_process_port 29500 --rdzv_backend c10d --max_restarts 3 -m vmae_lab pretrain $PARAMS" &
launchers=$!

# Ten minutes before the end: stop the launchers, wait until all processes have saved, and queue the job again.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"; wait "$launchers"; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1
wait "$launchers"
