#!/usr/bin/env bash
# Slurm: one Ray node a machine, the job beside the first. From nothing, in a clone: sbatch jobs/slurm.sh
# Whatever ends it (preemption, the time limit, a machine), Slurm queues it again and it goes on with what is missing.
#
# Change:
#SBATCH --job-name=sam-amg
#SBATCH --nodes=4
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=sam-amg-%j.log
#SBATCH --signal=B:USR1@180
input=${INPUT:-/shared/photos}      # on a file system that all machines have, or URLs
out=${OUT:-/shared/labels}
weights=${WEIGHTS:-sam-vit-h}
venv=${VENV:-/shared/sam-amg-venv}  # made if it is not there
clone=${CLONE:-$PWD}
export SAM_AMG_CACHE=${SAM_AMG_CACHE:-/shared/sam-amg-cache}

set -euo pipefail
if [[ ! -x $venv/bin/sam-amg ]]; then
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet "$clone"
fi
export PATH="$venv/bin:$PATH"
token=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$token  # other users of these machines cannot reach this cluster

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
on() { exec srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" "${@:2}"; }
head_ip=$(on "${nodes[0]}" hostname -I | cut -d ' ' -f 1)
address=$head_ip:$((20000 + SLURM_JOB_ID % 20000))  # two jobs that share a machine do not meet
resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --block)

rays=()
stop_ray() { kill "${rays[@]}" 2> /dev/null || true; }
trap stop_ray EXIT

on "${nodes[0]}" ray start --head --node-ip-address="$head_ip" --port="${address#*:}" --include-dashboard=false \
  --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${resources[@]}" &
rays+=($!)
for _ in {1..120}; do
  if ray health-check --address "$address" &> /dev/null; then break; fi
  sleep 1
done
for node in "${nodes[@]:1}"; do
  on "$node" ray start --address="$address" "${resources[@]}" &
  rays+=($!)
done

# Three minutes before the time is up: end in order, then come again.
job=
again() {
  if [[ -n $job ]]; then
    kill -TERM "$job" 2> /dev/null || true
    wait "$job" || true
  fi
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap again USR1

sam-amg run "$input" --out "$out" --weights "$weights" --runner ray --address "$address" --log json &
job=$!
wait "$job"
