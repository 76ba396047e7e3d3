"""Serial tests. tests/mpi is a suite of its own: `mpirun -n 4 python -m pytest tests/mpi`."""

import sys
from pathlib import Path

import pytest

from gala_mpi.job.launch import set_environment

set_environment()  # as the commands do before torch and MPI are loaded
sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))  # scripts that import each other by their names

collect_ignore = ["mpi"]


@pytest.fixture
def registered():
    """gymnasium's registry, which is again as it was after the test."""
    import gymnasium  # slow to import

    before = dict(gymnasium.registry)
    yield gymnasium.registry
    gymnasium.registry.clear()
    gymnasium.registry.update(before)
