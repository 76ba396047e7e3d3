"""The transport, with mpi4py and numpy alone: windows, the messages in them, who is alive, the start and end of MPI."""
