"""Serial tests. tests/mpi is a suite of its own: `mpirun -n 4 python -m pytest tests/mpi`."""

collect_ignore = ["mpi"]
