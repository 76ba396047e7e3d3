"""Benchmarks of real training: `mpirun -n 4 python -m gala_mpi.bench --help`."""
