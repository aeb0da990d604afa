#!/bin/bash
# A job of two nodes for slurm: sbatch examples/slurm.sh --epochs 2
# The scheduler is on the first node, and servers and workers are dealt out to the nodes in turn.
#SBATCH --nodes=2 --exclusive
export DMLC_NUM_WORKER=2 DMLC_NUM_SERVER=1
export DMLC_PS_ROOT_URI=$(hostname -I | cut -d' ' -f1) DMLC_PS_ROOT_PORT=$((20000 + SLURM_JOB_ID % 10000))
srun --ntasks=$((1 + DMLC_NUM_SERVER + DMLC_NUM_WORKER)) --overcommit --distribution=cyclic --kill-on-bad-exit bash -c '
  if ((SLURM_PROCID == 0)); then DMLC_ROLE=scheduler
  elif ((SLURM_PROCID <= DMLC_NUM_SERVER)); then DMLC_ROLE=server
  else DMLC_ROLE=worker; fi
  DMLC_ROLE=$DMLC_ROLE exec .venv/bin/rnn-ops train --kvstore dist_sync --out runs/two "$@"' rnn-ops "$@"
