#!/usr/bin/env bash
# NOT RUN under Slurm: none was at hand. Its body was run by hand as a dry run, with Slurm's variables set.
#
# An array of four jobs, each with one of four shares of the runs: without submitit, and nothing stays on the login node.
# From the repository's root, on storage that login and compute nodes share:
#   ./run_all.sh --dry-run && mkdir -p data/local/logs        once, before: jobs must not install side by side
#   sbatch examples/many_machines/slurm.sh --seeds 0 1 2      what follows the script goes to run_all.sh
#   ./run_all.sh --seeds 0 1 2                                when all four are done: draws, and does what failed again
# Sixteen shares: sbatch --array=1-16 examples/many_machines/slurm.sh. One share again: SHARES=4 sbatch --array=3 ..., since
# Slurm counts the jobs of that array alone. To send all of them again does no harm: what is done is found.
#
# Slurm queues a job again when its node fails or it is pre-empted, and not when its time is over: then send it again.

#SBATCH --job-name=inoculation
#SBATCH --array=1-4
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=6G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=data/local/logs/slurm-%A_%a.log
# A GPU for each job: one # less here, and memory for the model. Your site may want a partition and an account, too.
##SBATCH --gpus-per-node=1
##SBATCH --partition=PARTITION
##SBATCH --account=ACCOUNT

set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
# Results lie where INOCULATION_HOME says, else here. The converted model belongs on the node's own disk.
export INOCULATION_CACHE="${INOCULATION_CACHE:-${TMPDIR:-/tmp}/inoculation-$UID}"
exec ./run_all.sh --shard "$SLURM_ARRAY_TASK_ID/${SHARES:-$SLURM_ARRAY_TASK_COUNT}" --threads "$SLURM_CPUS_PER_TASK" "$@"
