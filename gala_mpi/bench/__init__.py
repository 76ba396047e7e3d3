"""Benchmarks of the real thing: `mpirun -n 4 python -m gala_mpi.bench --help`."""
