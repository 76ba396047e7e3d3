"""Check a machine, its MPI and a run directory. `train` makes the quick checks (`job/preflight.py`) itself."""
