#!/bin/bash
# A report of one or more runs, once they are trained and evaluated:
#
#     job=$(sbatch --parsable jobs/slurm/evaluate.sh runs/pong)
#     sbatch --dependency=afterok:$job jobs/slurm/report.sh runs/pong --out report.html
#
#SBATCH --job-name=report
#SBATCH --ntasks=1
#SBATCH --time=0:30:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -euo pipefail
. jobs/slurm/site.sh

python analysis/report.py "$@"
