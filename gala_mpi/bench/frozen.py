"""Whether anybody waits: all ranks train, one is frozen by SIGSTOP for seconds, and the others' calls are timed.

A stall is the longest time that a rank other than the frozen one spent in one call of `exchange.parameters` or
`exchange.poke` while it was frozen. Beside it stands what that time was: spent computing (`cpu`), or off the processor,
because the kernel gave it to somebody else (`preempted`, how often) or because the call itself waited for something
(`blocked`, how often). A transport that waits for its peer shows as seconds; more ranks than cores show as preemptions.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from gala_mpi import agent, display
from gala_mpi.agent import Agent
from gala_mpi.config import Config, FrozenBench
from gala_mpi.exchange import Exchange
from gala_mpi.world import World

SECONDS_AROUND = 3.0  # of undisturbed training before the neighbour is frozen, and after
WARM_UP_UPDATES = 10
PHASES = ("before", "frozen", "after")


@dataclass
class Call:
    """One call into the exchange."""

    name: str = ""
    wall: float = 0.0  # s
    cpu: float = 0.0  # s of this thread
    preempted: int = 0  # involuntary context switches
    blocked: int = 0  # voluntary context switches


class Timed:
    """An exchange whose calls on the learner's path are timed; `longest` holds the longest of each kind."""

    def __init__(self, inner: Exchange):
        self._inner = inner
        self.longest = {"parameters": Call(), "poke": Call()}

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def parameters(self, parameters: np.ndarray) -> None:
        self._time("parameters", parameters)

    def poke(self) -> None:
        self._time("poke")

    def _time(self, name: str, *arguments) -> None:
        before, cpu, began = resource.getrusage(resource.RUSAGE_THREAD), time.thread_time(), time.perf_counter()
        getattr(self._inner, name)(*arguments)
        wall = time.perf_counter() - began
        if wall > self.longest[name].wall:
            after = resource.getrusage(resource.RUSAGE_THREAD)
            self.longest[name] = Call(
                name,
                wall,
                time.thread_time() - cpu,
                after.ru_nivcsw - before.ru_nivcsw,
                after.ru_nvcsw - before.ru_nvcsw,
            )


def measure(world: World, bench: FrozenBench, settings: Config) -> dict[str, Any]:
    """Figures on rank 0: for every phase, each other rank's steps/s and the longest call of any."""
    frozen = world.size - 1 if bench.frozen is None else bench.frozen
    me = agent.build(settings, world.comm, world.node.rank, world.threads)
    me.exchange = timed = Timed(me.exchange)
    me.collector.poke = timed.poke
    me.start()
    for _ in range(WARM_UP_UPDATES):
        me.update()
    world.comm.Barrier()
    if world.rank == frozen:
        freeze(after=SECONDS_AROUND, seconds=bench.seconds)
    began, phases = time.perf_counter(), {}
    for phase, end in zip(PHASES, np.cumsum([SECONDS_AROUND, bench.seconds, SECONDS_AROUND])):
        phases[phase] = train(me, timed, began + end)
    me.close()
    ranks = world.comm.gather(phases)
    if not world.root:
        return {}
    others = {rank: phases for rank, phases in enumerate(ranks) if rank != frozen}
    stalls = {}
    for phase in PHASES:
        calls = [call | {"rank": rank} for rank, phases in others.items() for call in phases[phase]["longest"]]
        stalls[phase] = max(calls, key=lambda call: call["wall"])
    rates = {phase: {rank: phases[phase]["steps_per_second"] for rank, phases in others.items()} for phase in PHASES}
    return {"frozen": frozen, "seconds": bench.seconds, "stalls": stalls, "steps_per_second": rates}


def train(me: Agent, timed: Timed, until: float) -> dict[str, Any]:
    """Train until then: steps/s and the longest calls."""
    timed.longest = {"parameters": Call(), "poke": Call()}
    began, steps = time.perf_counter(), me.learner.steps
    while (now := time.perf_counter()) < until:
        me.update()
    rate = (me.learner.steps - steps) / (now - began)
    return {"steps_per_second": rate, "longest": [asdict(call) for call in timed.longest.values()]}


def freeze(after: float, seconds: float) -> None:
    """Stop this whole process after so many seconds, for so many seconds. It cannot wake itself: a shell does."""
    # close_fds=False and a path: started by posix_spawn, not fork, which MPI libraries do not survive.
    script = f"sleep {after}; kill -STOP {os.getpid()}; sleep {seconds}; kill -CONT {os.getpid()}"
    subprocess.Popen(["/bin/sh", "-c", script], close_fds=False)


def show(figures: dict[str, Any], bench: FrozenBench, settings: Config) -> None:
    display.say(
        f"{settings.env}, {settings.exchange} over {settings.topology}, {figures['ranks']} ranks on {figures['hosts']} hosts, "
        f"{figures['mpi']}; rank {figures['frozen']} frozen for {figures['seconds']:g} s"
    )
    table = Table("the others", "longest call", "rank", "ms", "of it cpu, ms", "preempted", "blocked", "steps/s")
    for phase, stall in figures["stalls"].items():
        rates = " ".join(f"{rate:,.0f}" for rate in figures["steps_per_second"][phase].values())
        table.add_row(
            phase,
            stall["name"],
            str(stall["rank"]),
            f"{1e3 * stall['wall']:.2f}",
            f"{1e3 * stall['cpu']:.2f}",
            str(stall["preempted"]),
            str(stall["blocked"]),
            rates,
        )
    display.console().print(table)
