"""Members of tables (EXCHANGES, LEARNERS, NETWORKS) that are imported only when they are used.

Code that needs only the names (the command line, the analysis) then imports neither torch nor MPI, and a new member is one
file and one line of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Member:
    """One line of a table.

    Attributes:
        place: where it is defined, "package.module:name".
        sentence: what it does, for the help text.
    """

    place: str
    sentence: str

    def load(self) -> Any:
        """Import the member and return it.

        Raises:
            ImportError: there is no such module.
            AttributeError: the module has no such name.
        """
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)
