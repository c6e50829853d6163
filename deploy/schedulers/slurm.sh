#!/usr/bin/env bash
# One night on machines that Slurm manages: sbatch deploy/schedulers/slurm.sh
# Every night: scrontab, with `30 1 * * * sbatch /opt/nightloupe/deploy/schedulers/slurm.sh`.
#
#SBATCH --job-name=nightloupe
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --dependency=singleton
#SBATCH --mail-type=FAIL
#SBATCH --output=nightloupe-%j.log
#
# With GPUs, add --gpus-per-node=1, and `--resources.gpus 1` below. The repository with its .venv lies
# at the same place on all nodes; keys and addresses are in /etc/nightloupe/environment of all nodes.
set -euo pipefail
cd "${NIGHTLOUPE:-/opt/nightloupe}"
set -a
# shellcheck source=/dev/null
. "${ENVIRONMENT:-/etc/nightloupe/environment}"
set +a
export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))  # two jobs may share a machine
cpus=$SLURM_CPUS_PER_TASK
srun --nodes=1 --ntasks=1 --nodelist="$head" ray start --head --block --disable-usage-stats --port="$port" \
    --num-cpus="$cpus" --include-dashboard=false --temp-dir="/tmp/nl-$SLURM_JOB_ID" &
export RAY_ADDRESS=$head:$port
for _ in $(seq 60); do
    ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1 && break
    sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude="$head" \
        ray start --block --address="$RAY_ADDRESS" --num-cpus="$cpus" &
fi
# On the head: a driver needs a node of the cluster on its machine. All nodes end with this job.
code=0
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    python -m jobs.nightly --config "${SETTINGS:-/etc/nightloupe/night.toml}" --resources.wait_for_nodes 300 || code=$?
[ "$code" = 75 ] && code=0  # another night is running, and no harm is done
exit "$code"
