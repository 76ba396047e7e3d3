# shellcheck shell=bash disable=SC2034
# The one file that a site edits. The other scripts source it in the job, from the directory where sbatch was typed.

# Software: the virtual environment of the repository, on a file system that all nodes see. A conda environment that was active
# at sbatch needs nothing. With modules, write here for example
#     module load python openmpi
VENV=${VENV:-.venv}
if [ -f "$VENV/bin/activate" ]; then
    # shellcheck source=/dev/null
    . "$VENV/bin/activate"
fi

# Launcher: takes -n RANKS and a command. `srun --mpi=list` says what Slurm offers; MPICH and Intel MPI want pmi2, Open MPI pmix.
#     LAUNCHER="srun --mpi=pmi2" sbatch jobs/slurm/atari.sh
# Where MPICH was built with UCX, as the wheel is, srun wants MPIR_CVAR_CH4_NETMOD=ofi too: docs/cluster.md, Symptoms.
read -ra launcher <<<"${LAUNCHER:-$(if command -v mpirun >/dev/null; then echo mpirun; else echo srun --mpi=pmi2; fi)}"

# Transport between nodes, where the MPI library does not find the network by itself; TCP on any network, for example
#     export MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp         # MPICH
#     export OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,sm,tcp        # Open MPI

# Where runs are kept: a file system that all nodes see, and that is not emptied every night. For example $SCRATCH/gala_mpi
RUNS=${RUNS:-runs}

# Done on every node before ranks start there. What ranks that were killed have left fills /dev/shm, and MPI can stumble over it
# when the job comes back with another number of ranks on the node.
prepare_node() {
    local mapped
    mapped=$(cat /proc/[0-9]*/maps 2>/dev/null | grep /dev/shm/)
    find /dev/shm -maxdepth 1 -user "$(id -un)" -mmin +0 -regex '.*/\(mpich_shm_\|sm_segment\|osc_\).*' 2>/dev/null |
        while read -r file; do [[ $mapped == *"$file"* ]] || rm -f "$file"; done
}
export -f prepare_node

# A run is not requeued once so many starts in a row have brought it no further.
PATIENCE=${PATIENCE:-3}
