"""Gossip-based actor-learners for deep reinforcement learning over MPI (GALA, Assran et al., NeurIPS 2019).

The public names are imported when they are first used. So `import gala_mpi` takes neither torch nor MPI and sets no environment
variable; the commands do what has to be done before these are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gala_mpi.callbacks import Callback, Ended, EpisodeEnded, Saved, Updated
    from gala_mpi.config import Config
    from gala_mpi.gossip import Gossip
    from gala_mpi.mpi.mailbox import Mailbox
    from gala_mpi.policy import Policy, load_policy
    from gala_mpi.run import find_runs, open_run
    from gala_mpi.topology import Topology
    from gala_mpi.train import call as train

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "Config",
    "Ended",
    "EpisodeEnded",
    "Gossip",
    "Mailbox",
    "Policy",
    "Saved",
    "Topology",
    "Updated",
    "__version__",
    "find_runs",
    "load_policy",
    "open_run",
    "train",
]

_HOMES = {
    "Callback": "gala_mpi.callbacks",
    "Config": "gala_mpi.config",
    "Ended": "gala_mpi.callbacks",
    "EpisodeEnded": "gala_mpi.callbacks",
    "Gossip": "gala_mpi.gossip",
    "Mailbox": "gala_mpi.mpi.mailbox",
    "Policy": "gala_mpi.policy",
    "Saved": "gala_mpi.callbacks",
    "Topology": "gala_mpi.topology",
    "Updated": "gala_mpi.callbacks",
    "find_runs": "gala_mpi.run",
    "load_policy": "gala_mpi.policy",
    "open_run": "gala_mpi.run",
    "train": "gala_mpi.train",  # the module itself, which can be called
}


def __getattr__(name: str) -> Any:
    """Import a public name."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOMES[name])
    value = globals()[name] = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
