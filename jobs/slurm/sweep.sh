#!/bin/bash
# Many runs as a job array: every combination of a table's lines, each in a run directory of its own. Further flags go to all.
#
#     sbatch jobs/slurm/sweep.sh
#     sbatch --array=0-7%4 --ntasks=16 jobs/slurm/sweep.sh my-table.txt --total-steps 10000000
#
# %4: at most four at a time. Each run is a job like that of atari.sh, and is requeued by itself.
#
#SBATCH --job-name=sweep
#SBATCH --array=0-17%8
#SBATCH --nodes=1-4
#SBATCH --ntasks=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A-%a.out
set -euo pipefail
. jobs/slurm/site.sh

table=${1:-jobs/slurm/sweep.txt}
shift || true
if [ ! -r "$table" ]; then
    echo "$table cannot be read; a table of runs is expected" >&2
    exit 2
fi
index=$SLURM_ARRAY_TASK_ID runs=1 flags=() name=$(printf %03d "$index")
while IFS='|' read -ra parts; do
    read -ra part <<<"${parts[index / runs % ${#parts[@]}]}"
    runs=$((runs * ${#parts[@]}))
    flags+=("${part[@]}")
    for word in "${part[@]}"; do
        [[ $word == --* ]] || name+=-${word//[^A-Za-z0-9._]/-}
    done
done < <(grep -v '^ *#' "$table" | grep .)

last=$((runs - 1)) array=$SLURM_ARRAY_TASK_MIN-$SLURM_ARRAY_TASK_MAX
if ((index > last)) || [[ $SLURM_ARRAY_TASK_COUNT != 1 && $array == 0-* && $array != "0-$last" ]]; then
    echo "$table has $runs runs, the array is $array; --array=0-$last is expected" >&2
    exit 2
fi
exec bash jobs/slurm/atari.sh "${flags[@]}" "$@" --run-dir "$RUNS/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID/$name"
