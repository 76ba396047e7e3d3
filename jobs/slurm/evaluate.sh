#!/bin/bash
# Play a run's policies, once it is trained. Flags of gala_mpi.evaluate pass through:
#
#     job=$(sbatch --parsable jobs/slurm/atari.sh --run-dir runs/pong)
#     sbatch --dependency=afterok:$job jobs/slurm/evaluate.sh runs/pong --video runs/pong/film.mp4
#
#SBATCH --job-name=evaluate
#SBATCH --ntasks=8
#SBATCH --time=2:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
. jobs/slurm/site.sh

"${launcher[@]}" -n "$SLURM_NTASKS" python -m gala_mpi.evaluate "$@"
