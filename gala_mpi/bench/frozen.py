"""Measure whether ranks wait for one that is frozen: all train, one is stopped by SIGSTOP, and the others' calls are timed.

All calls of `exchange.parameters` and `exchange.progress` by ranks other than the frozen one are timed. The kernel says where
a call's time went: it was computing, or ready but waiting for a core (with more ranks than cores), or else stalled, which is
waiting for something. A transport that waits for its peer shows as seconds of stall, or of computing if it spins.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Optional, cast

import numpy as np
from rich.table import Table

from gala_mpi import display
from gala_mpi.agent import Agent
from gala_mpi.cli import Unprefixed
from gala_mpi.config import Config
from gala_mpi.exchange.base import Exchange
from gala_mpi.job import build
from gala_mpi.mpi.world import World

SECONDS_AROUND = 3.0  # of undisturbed training before the rank is frozen, and after
WARM_UP_UPDATES = 10
PHASES = ("before", "frozen", "after")


@dataclass(frozen=True)
class FrozenBench:
    """Freeze one rank (SIGSTOP) while all train, and print the longest stall of the others: whether any rank waits."""

    settings: Unprefixed[Config] = field(default_factory=Config)
    """What is trained."""
    frozen: Optional[int] = None
    """The rank to freeze. None: the last one."""
    seconds: float = 5.0
    """How long it stays frozen."""
    json: bool = False
    """Print one JSON object instead of tables."""


@dataclass
class Call:
    """One call into the exchange. Times in seconds."""

    name: str = ""
    wall: float = 0.0
    computing: float = 0.0
    for_a_core: float = 0.0  # ready, in the run queue

    @property
    def stalled(self) -> float:
        return max(0.0, self.wall - self.computing - self.for_a_core)


class Timed:
    """An exchange whose calls by the training loop are timed.

    Attributes:
        longest: the call that took longest.
        stall: the longest stall of any call, in seconds.
    """

    def __init__(self, inner: Exchange):
        self._inner = inner
        self._scheduler = open("/proc/thread-self/schedstat")  # ns computing, ns in the run queue, ...
        self.forget()

    def forget(self) -> None:
        """Forget the calls so far."""
        self.longest, self.stall = Call(), 0.0

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def parameters(self, parameters: np.ndarray) -> None:
        self._time("parameters", parameters)

    def progress(self) -> None:
        self._time("progress")

    def _time(self, name: str, *arguments) -> None:
        computing, for_a_core = self._scheduled()
        began = time.perf_counter()
        getattr(self._inner, name)(*arguments)
        wall = time.perf_counter() - began
        computed, waited = self._scheduled()
        call = Call(name, wall, computed - computing, waited - for_a_core)
        self.stall = max(self.stall, call.stalled)
        if call.wall > self.longest.wall:
            self.longest = call

    def _scheduled(self) -> tuple[float, float]:
        """Return the seconds for which this thread has computed so far, and for which it has waited for a core."""
        self._scheduler.seek(0)
        _, for_a_core, _ = self._scheduler.read().split()  # the first is updated only at ticks
        return time.thread_time(), 1e-9 * int(for_a_core)


def measure(world: World, bench: FrozenBench, settings: Config) -> dict[str, Any]:
    """Return figures on rank 0: for every phase, the steps/s and the longest call of each rank but the frozen one.

    Collective.
    """
    frozen = world.size - 1 if bench.frozen is None else bench.frozen
    agent = build.build(settings, world.comm, world.node.rank, world.threads)
    timed = Timed(agent.exchange)
    agent.exchange = cast(Exchange, timed)
    agent.collector.progress = timed.progress
    agent.start()
    for _ in range(WARM_UP_UPDATES):
        agent.update()
    world.comm.Barrier()
    if world.rank == frozen:
        freeze(after=SECONDS_AROUND, seconds=bench.seconds)
    began, phases = time.perf_counter(), {}
    for phase, end in zip(PHASES, np.cumsum([SECONDS_AROUND, bench.seconds, SECONDS_AROUND])):
        phases[phase] = train(agent, timed, began + end)
    agent.close()
    ranks = world.gather(phases)
    if not world.root:
        return {}
    others = {rank: phases for rank, phases in enumerate(ranks) if rank != frozen}
    calls = {phase: {rank: phases[phase] for rank, phases in others.items()} for phase in PHASES}
    return {"frozen": frozen, "seconds": bench.seconds, "others": calls}


def train(agent: Agent, timed: Timed, until: float) -> dict[str, Any]:
    """Train until `until` (of `time.perf_counter`), and return the steps/s, the longest stall and the longest call."""
    timed.forget()
    began, steps = time.perf_counter(), agent.learner.steps
    while (now := time.perf_counter()) < until:
        agent.update()
    rate = (agent.learner.steps - steps) / (now - began)
    return {"steps_per_second": rate, "stall": timed.stall, "longest": asdict(timed.longest)}


def freeze(after: float, seconds: float) -> None:
    """Stop this process after `after` seconds, for `seconds`. A shell does it, since a stopped process cannot wake itself."""
    # With close_fds=False and a path, Popen uses posix_spawn and not fork, which MPI libraries do not survive.
    script = f"sleep {after}; kill -STOP {os.getpid()}; sleep {seconds}; kill -CONT {os.getpid()}"
    subprocess.Popen(["/bin/sh", "-c", script], close_fds=False)


def show(figures: dict[str, Any], bench: FrozenBench, settings: Config) -> None:
    """Print the figures as a table."""
    display.say(
        f"{settings.env}, {settings.exchange} over {settings.topology}, "
        f"{figures['ranks']} ranks on {figures['hosts']} hosts, {figures['mpi']}; "
        f"rank {figures['frozen']} frozen for {figures['seconds']:g} s"
    )
    table = Table("the others", "longest stall, ms", "longest call, ms", "computing", "for a core", "steps/s of each")
    for phase, others in figures["others"].items():
        longest = max((other["longest"] for other in others.values()), key=lambda call: call["wall"])
        table.add_row(
            phase,
            f"{1e3 * max(other['stall'] for other in others.values()):.2f}",
            f"{1e3 * longest['wall']:.2f} ({longest['name']})",
            f"{1e3 * longest['computing']:.2f}",
            f"{1e3 * longest['for_a_core']:.2f}",
            " ".join(f"{other['steps_per_second']:,.0f}" for other in others.values()),
        )
    display.console().print(table)
