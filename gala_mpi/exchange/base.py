"""How agents share what they learn: one small protocol, a few members, one table.

Everything outside this folder is the same for all of them, so that a comparison between them compares the communication
and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch


class Mix(NamedTuple):
    """A message that was averaged into the parameters: whose, which version, with which weight."""

    peer: int
    version: int
    weight: float


@dataclass(frozen=True)
class Order:
    """Something that agents do together: stop, or save a checkpoint."""

    stop: bool = False
    save: bool = False


@dataclass
class Counters:
    """What an exchange did in the last update."""

    mixes: list[Mix] = field(default_factory=list)  # the messages averaged into the parameters
    staleness: int = 0  # updates since the last mix
    torn: int = 0  # messages thrown away so far because their slot was rewritten while they were read
    corrupt: int = 0  # messages thrown away so far because their checksum was wrong (checksum mode)
    progress_gap: float = 0.0  # longest time since the last update without a progress, s
    lost: dict[int, int] = field(default_factory=dict)  # peers that show no sign of life, and their last versions (--survive)


class Exchange(Protocol):
    """One way to share. Vectors are float32 [P], all on the agent's device, and are changed in place."""

    def start(self, version: int, parameters: torch.Tensor) -> None:
        """Collective. Begin (or resume) at update `version` with these parameters."""

    def gradient(self, gradient: torch.Tensor) -> None:
        """After the backward pass, before the optimiser."""

    def room(self) -> torch.Tensor | None:
        """Before the optimiser's step: where its result is best written; None: in place. `parameters` then finds it there,
        and sets all of what it is given."""

    def parameters(self, parameters: torch.Tensor) -> None:
        """After the optimiser's step."""

    def progress(self) -> None:
        """Move messages along without waiting; called often."""

    def agree(self, wish: Order) -> Order:
        """This rank's wish → what to do now. Exchanges whose ranks move in step answer the same on all of them."""

    def counters(self) -> Counters: ...

    def close(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Collective, and the last call. Serve the others until all are here, calling `meanwhile` as often as may be, then free
        the windows."""
