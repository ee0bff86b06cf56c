#!/usr/bin/env bash
# Pre-training on several machines under Slurm: bash docs/slurm.sh. It submits itself as a job.
# If the job is preempted or its time ends, it saves a checkpoint and is queued again until it is finished.
# Tested on one machine with two processes, without GPUs; not run yet on several machines.
set -uo pipefail

# Values of your site and of this run. Each can also be set in the environment: TIME=1:00:00 bash docs/slurm.sh
export NODES=${NODES:-8}
export GPUS=${GPUS:-8}           # per machine; 0: no GPUs
export PROCESSES=${PROCESSES:-8} # per machine; one for each GPU
export CPUS=${CPUS:-96}          # per machine
export TIME=${TIME:-24:00:00}    # limit of the job
export NOTICE=${NOTICE:-600}     # seconds before the limit at which it saves and is queued again
export OPTIONS=${OPTIONS:-}      # other options of sbatch, such as "--partition=gpu --account=vision"
export PARAMS=${PARAMS:-paper/k710}
export ARGUMENTS=${ARGUMENTS:-} # of `vmae-lab pretrain`, such as "--seed 0"
export CONFIG=${CONFIG:-params/accelerate/eight_nodes.yaml}
export ACTIVATE=${ACTIVATE:-.venv/bin/activate}

if [ -z "${IN_THE_JOB:-}" ]; then
  export IN_THE_JOB=yes
  # shellcheck disable=SC2046,SC2086 # several words, or none
  exec sbatch --job-name=vmae_lab --nodes="$NODES" --ntasks-per-node=1 --cpus-per-task="$CPUS" --time="$TIME" \
    --signal="B:USR1@$NOTICE" --requeue --open-mode=append $([ "$GPUS" = 0 ] || echo "--gpus-per-node=$GPUS") $OPTIONS "$0"
fi

cd "$SLURM_SUBMIT_DIR" || exit
. "$ACTIVATE"

export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300   # seconds that a step and a checkpoint may take
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # otherwise restarted processes find the addresses of the old ones
export OMP_NUM_THREADS=1
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One launcher per machine; each starts the processes of its machine.
srun --cpus-per-task="$CPUS" bash -c "accelerate launch --config_file $CONFIG \
  --num_machines $SLURM_NNODES --num_processes $((SLURM_NNODES * PROCESSES)) --machine_rank \$SLURM_NODEID \
  --main_process_ip $first --main_process_port 29500 --rdzv_backend c10d --max_restarts 3 \
  -m vmae_lab pretrain $PARAMS $ARGUMENTS" &
launchers=$!

# Before the end: stop the launchers, wait until all processes have saved, and queue the job again.
trap 'scancel --signal=TERM "$SLURM_JOB_ID"; wait "$launchers"; scontrol requeue "$SLURM_JOB_ID"; exit 0' USR1
wait "$launchers"
