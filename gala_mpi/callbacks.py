"""What a program that calls `gala_mpi.train` is told while it trains: updates, episodes, checkpoints and the end.

class Printed(gala_mpi.Callback):
    def checkpoint(self, saved):
        print(saved.file)

Every rank calls its own, about its own agent. Ranks that play for another one (--actors) call none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from gala_mpi.cli import require


@dataclass(frozen=True)
class Updated:
    """What a callback is told of an update. Losses and norms are the columns of these names (docs/metrics.md).

    Attributes:
        rank: of the agent.
        agents: how many there are.
        update: its number.
        steps: of this agent.
        run_steps: of all agents, as far as this one knows.
        hours: training time of the run so far.
        score: mean of the last 100 scores of all agents, as far as this one knows; NaN before the first.
        policy_loss: NaN where the learner has none, as the next two.
        value_loss: that of the value.
        entropy: that of the policy.
        grad_norm: norm of the gradient, before clipping.
        step_norm: length of the optimiser's step.
        mixes: how many messages of peers were averaged into the parameters.
        skipped: why nothing was learnt, in words; empty: it was.
    """

    rank: int
    agents: int
    update: int
    steps: int
    run_steps: int
    hours: float
    score: float
    policy_loss: float
    value_loss: float
    entropy: float
    grad_norm: float
    step_norm: float
    mixes: int
    skipped: str


@dataclass(frozen=True)
class EpisodeEnded:
    """What a callback is told of an episode.

    Attributes:
        rank: of the agent.
        update: of the agent, in whose rollout the episode has ended.
        environment: which one of the agent's.
        score: the sum of the rewards, none of which is clipped.
        length: in steps.
    """

    rank: int
    update: int
    environment: int
    score: float
    length: int


@dataclass(frozen=True)
class Saved:
    """What a callback is told of a checkpoint. It is complete once all agents have written their files of it.

    Attributes:
        rank: of the agent.
        update: at which it was saved.
        number: of the checkpoint.
        file: the agent's own.
    """

    rank: int
    update: int
    number: int
    file: Path


@dataclass(frozen=True)
class Ended:
    """How a run has ended: what `gala_mpi.train` returns, and callbacks are told last. Alike on all ranks, but for `rank`.

    Attributes:
        rank: of the agent; on ranks that play for one, of that.
        directory: the run directory, as `gala_mpi.open_run` takes it.
        finished: whether all steps are done. Else the run can be resumed.
        reason: why it has stopped early; empty: it has not.
        status: the exit status that the command has: 0 all is done, 75 stopped early, 128 + the number of a signal that
            stopped it for good.
    """

    rank: int
    directory: Path
    finished: bool
    reason: str
    status: int


class Callback:
    """Something to call while a run trains: a class of yours with some of these methods. All of them do nothing here.

    A method that returns True, or a reason (a string), asks the run to stop: then all agents stop after their next updates and
    save, as after SIGTERM, and the run can be resumed. None and False ask for nothing.

    What a method raises ends the job on all ranks, with its traceback. The last checkpoint stays.
    """

    def update(self, done: Updated) -> bool | str | None:
        """Be told of an update of this rank's agent, once it is recorded."""

    def episode(self, ended: EpisodeEnded) -> bool | str | None:
        """Be told of an episode that has ended in the last update, before `update` is."""

    def checkpoint(self, saved: Saved) -> bool | str | None:
        """Be told of a checkpoint that this rank has written."""

    def end(self, ended: Ended) -> None:
        """Be told of the end, once the last checkpoint is written and all ranks know the reason."""


Given: TypeAlias = "Callback | Callable[[Updated], bool | str | None]"


class Callbacks:
    """The callbacks of a rank. False where there are none.

    Args:
        given: each a `Callback`, or a function that is called as its `update`.

    Attributes:
        reason: why one of them wants the run to stop; empty: none does.

    Raises:
        SettingError: one is neither.
    """

    def __init__(self, given: Iterable[Given] = ()):
        several = isinstance(given, Iterable)  # pyright: ignore[reportUnnecessaryIsInstance]  # of programs that nobody checks
        require(several, "callbacks", type(given).__name__, "a list of callbacks")
        self._given: list[Callback] = [_callback(each) for each in given]
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self._given)

    def update(self, done: Updated) -> None:
        for each in self._given:
            self._heed(each, each.update(done))

    def episode(self, ended: EpisodeEnded) -> None:
        for each in self._given:
            self._heed(each, each.episode(ended))

    def checkpoint(self, saved: Saved) -> None:
        for each in self._given:
            self._heed(each, each.checkpoint(saved))

    def end(self, ended: Ended) -> None:
        for each in self._given:
            each.end(ended)

    def _heed(self, callback: Callback, wish: bool | str | None) -> None:
        """Take note of what a callback has returned.

        Raises:
            SettingError: it is no wish.
        """
        wish = bool(wish) if isinstance(wish, np.bool_) else wish  # what comparing one of numpy's numbers gives
        if wish is None or wish is False:
            return
        name = getattr(callback, "name", type(callback).__qualname__)
        known = wish is True or isinstance(wish, str)  # pyright: ignore[reportUnnecessaryIsInstance]  # as above
        require(known, f"callback {name} has returned", repr(wish), "None, True or a reason")
        self.reason = self.reason or (wish if isinstance(wish, str) and wish else f"callback {name} asks for it")


class _Function(Callback):
    """A function as a callback."""

    def __init__(self, function: Callable[[Updated], bool | str | None]):
        self.name = getattr(function, "__qualname__", type(function).__qualname__)
        self._function = function

    def update(self, done: Updated) -> bool | str | None:
        return self._function(done)


def _callback(given: Given) -> Callback:
    if isinstance(given, Callback):
        return given
    allowed = "a gala_mpi.Callback, or a function of an update,"
    require(callable(given) and not isinstance(given, type), "callbacks", repr(given), allowed)
    return _Function(given)
