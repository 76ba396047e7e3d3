"""Tables of members (EXCHANGES, LEARNERS, NETWORKS): a name, where it is, what it does. A member is imported when it is used.

So whoever only wants the names (the command line, the analysis) imports neither torch nor MPI, and a new member is one file
and one line of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Member:
    """One line of a table.

    Attributes:
        place: "package.module:name".
        sentence: what it does, for the help.
    """

    place: str
    sentence: str

    def load(self) -> Any:
        """Import the member.

        Raises:
            ImportError, AttributeError: there is nothing at its place.
        """
        module, _, name = self.place.partition(":")
        return getattr(import_module(module), name)
