"""gala_mpi: gossip-based actor-learners over MPI (GALA, Assran et al., NeurIPS 2019)."""

__version__ = "0.1.0"
