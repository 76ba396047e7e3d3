"""gala_mpi: gossip-based actor-learners over MPI (GALA, Assran et al., NeurIPS 2019)."""

import os

__version__ = "0.1.0"

# One rank, few threads: `agent.build` raises torch's own count to the rank's share of the cores. Everything else that
# would start a thread per core of the machine (OpenBLAS, OpenMP) is told not to before it is first imported.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# UCX over TCP moves a message in pieces of 8 KB unless it is told, which takes four times the tests and the time.
for _variable in ("UCX_TCP_TX_SEG_SIZE", "UCX_TCP_RX_SEG_SIZE"):
    os.environ.setdefault(_variable, "256K")
