"""Gossip-based actor-learners for deep reinforcement learning over MPI (GALA, Assran et al., NeurIPS 2019).

The public names are imported when they are first used. So `import gala_mpi` takes neither torch nor MPI and sets no environment
variable; the commands do what has to be done before these are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gala_mpi.run import find_runs, open_run

__version__ = "0.1.0"
__all__ = ["__version__", "find_runs", "open_run"]

_HOMES = {"find_runs": "gala_mpi.run", "open_run": "gala_mpi.run"}


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
