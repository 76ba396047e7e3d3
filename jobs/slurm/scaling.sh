#!/bin/bash
# The same run on 1, 2, 4, ... ranks, one after the other in one allocation. Flags of gala_mpi.train pass through:
#
#     sbatch jobs/slurm/scaling.sh
#     sbatch --ntasks=64 jobs/slurm/scaling.sh --env breakout --exchange allreduce --wall-minutes 10
#
#SBATCH --job-name=scaling
#SBATCH --nodes=1-4
#SBATCH --ntasks=32
#SBATCH --time=1:00:00
#SBATCH --no-requeue
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
. jobs/slurm/site.sh

runs=$RUNS/$SLURM_JOB_NAME-$SLURM_JOB_ID failed=0
for ((n = 1; n <= SLURM_NTASKS; n *= 2)); do
    run=$runs/$(printf %05d $n)
    # 75: the wall time is over
    "${launcher[@]}" -n $n python -m gala_mpi.train --wall-minutes 3 "$@" --run-dir "$run" || [ $? = 75 ] || { failed=1 && break; }
done
echo "ranks  steps/s"
for run in "$runs"/*; do
    rate=$(python -m gala_mpi.watch "$run" --value rate) || continue
    LC_NUMERIC=C printf '%5d  %7.0f\n' "$((10#${run##*/}))" "$rate"
done
exit "$failed"
