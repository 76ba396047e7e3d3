"""What is wrong with a machine, an MPI or a place for a run: `quick`, which `train` does at its start, and the command."""
