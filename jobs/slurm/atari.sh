#!/bin/bash
# Train as a Slurm job that survives time limits, preemption and node failures. Flags of gala_mpi.train pass through:
#
#     sbatch jobs/slurm/atari.sh
#     sbatch --ntasks=64 jobs/slurm/atari.sh --env breakout --seed 3
#     sbatch jobs/slurm/atari.sh --run-dir runs/pong-31415          # goes on with a run, or begins it
#
# Submit from the repository. Five minutes before the time limit the run is asked to save (a limit of less than half an hour
# wants --signal=B:USR1@60, say); it stops with status 75, "resume me", and the job requeues itself until the run is finished.
#
#SBATCH --job-name=gala
#SBATCH --nodes=1-4
#SBATCH --ntasks=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
launched=
trap 'signal=USR1; [ -z "$launched" ] || kill -USR1 "$launched" || true' USR1
trap 'signal=TERM' TERM # this reaches the ranks by itself
. jobs/slurm/site.sh

run=$RUNS/$SLURM_JOB_NAME-$SLURM_JOB_ID
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
    --run-dir | --run_dir) next=$((i + 1)) && run=${!next:?--run-dir without a directory} ;;
    --run-dir=* | --run_dir=*) run=${!i#*=} ;;
    esac
done
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
resume=()
if [ -e "$run/run.h5" ]; then
    resume=(--resume)
fi
echo "$(date '+%F %T') job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1))"
echo "run directory: $(realpath -m "$run")"
echo "watch: python -m gala_mpi.watch $run"

srun --mpi=none --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash -c prepare_node || true

# When this job ends, for the run to stop in time whatever signal comes or does not. Slurm before 23.02 does not say.
SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-$(date -d "$(squeue -h -j "$job" -o %e)" +%s 2>/dev/null || true)}
export SLURM_JOB_END_TIME

# In the background, since bash runs a trap only between two commands or in `wait`.
"${launcher[@]}" -n "$SLURM_NTASKS" python -m gala_mpi.train "$@" --run-dir "$run" "${resume[@]}" &
launched=$!
signal=none
while [ "$signal" ]; do
    signal='' status=0
    wait "$launched" || status=$?
done

# Preempted with time to save: Slurm requeues what it has to kill, but not what ends by itself.
if [ "$status" != 0 ] && [[ $(scontrol show job "$job" || true) =~ PreemptTime=[0-9] ]]; then
    status=75
fi
if [ "$status" = 75 ]; then
    idle=$(python -m gala_mpi.watch "$run" --value idle_starts) || idle=0 # there was no run yet
    if [ "$idle" -ge "$PATIENCE" ]; then
        echo "not requeued: the last $idle starts have brought no progress"
    else
        echo "to be requeued"
        scontrol requeue "$job" || echo "not requeued; to go on: sbatch jobs/slurm/atari.sh --run-dir $run"
    fi
fi
exit "$status"
