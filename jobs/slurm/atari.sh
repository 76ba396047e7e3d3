#!/bin/bash
# Train an Atari game as a Slurm job. Options of gala_mpi.train pass through:
#
#     sbatch jobs/slurm/atari.sh
#     sbatch --ntasks=64 jobs/slurm/atari.sh --env breakout --topology exponential
#
# Submit from the repository. The same command on the same run directory continues a run that was cut off:
#
#     sbatch jobs/slurm/atari.sh --run-dir runs/pong-31415
#
#SBATCH --job-name=gala
#SBATCH --ntasks=32
#SBATCH --cpus-per-task=1
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

# One virtual environment for all nodes; on a cluster with modules, load Python and MPI here instead.
if [ -f .venv/bin/activate ]; then
    # shellcheck source=/dev/null
    . .venv/bin/activate
fi

# A run directory of its own, unless one was given.
run=runs/${SLURM_JOB_NAME:-gala}-${SLURM_JOB_ID:-$$}
arguments=("$@")
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
    --run-dir) next=$((i + 1)) && run=${!next} ;;
    --run-dir=*) run=${!i#--run-dir=} ;;
    esac
done

resume=()
if [ -e "$run/run.h5" ]; then
    resume=(--resume)
fi
echo "run directory: $(realpath -m "$run")"
echo "watch: tail -f slurm-${SLURM_JOB_NAME:-gala}-${SLURM_JOB_ID:-$$}.out"
exec mpirun -n "${SLURM_NTASKS:-2}" python -m gala_mpi.train "${arguments[@]}" --run-dir "$run" "${resume[@]}"
