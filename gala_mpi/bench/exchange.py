"""What an exchange costs: in real training, beside a copy of the same bytes, beside an Allreduce of them.

At every second update the exchange is timed; at the others a plain copy of the parameters just before it, so that both
find the caches in the same state. (Publishing is no part of an exchange: the optimiser's step goes into the window.) The
Allreduce has a loop of its own, with all ranks there when it begins, so that it shows the operation and not the waiting for
the slowest.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from rich.table import Table

from gala_mpi import display
from gala_mpi.config import Config
from gala_mpi.exchange.base import Exchange
from gala_mpi.job import build
from gala_mpi.mpi.world import World

WARM_UP_UPDATES = 10
ALLREDUCES = 50


@dataclass(frozen=True)
class ExchangeBench:
    """What an exchange costs: against copying the same bytes, against Allreduce, and as a share of an update."""

    settings: Config = field(default_factory=Config)
    """What is trained."""
    updates: int = 200
    """Updates that each rank does."""
    json: bool = False
    """Print one JSON object instead of tables."""


class Timed:
    """An exchange that times itself at every second update, and a copy of what it is given at the others. Seconds."""

    def __init__(self, inner: Exchange, size: int):
        self._inner = inner
        self._scratch = torch.zeros(size)
        self._copying = True
        self.exchanges: list[float] = []
        self.mixing: list[float] = []  # the exchanges that mixed
        self.copies: list[float] = []

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def parameters(self, parameters: torch.Tensor) -> None:
        if self._copying:
            self.copies.append(_seconds(self._scratch.copy_, parameters))
            self._inner.parameters(parameters)
        else:
            self.exchanges.append(_seconds(self._inner.parameters, parameters))
            if self._inner.counters().mixes:
                self.mixing.append(self.exchanges[-1])
        self._copying = not self._copying


def _seconds(call, *arguments) -> float:
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def measure(world: World, bench: ExchangeBench, settings: Config) -> dict[str, Any]:
    """Figures on rank 0: medians over the updates of each rank, then over the ranks. Times in s, age in updates."""
    me = build.build(settings, world.comm, world.node.rank, world.threads)
    size = len(me.learner.flat)
    me.start()
    for _ in range(WARM_UP_UPDATES):
        me.update()
    timed = Timed(me.exchange, size)
    me.exchange = cast(Exchange, timed)
    updates, messages, ages = [], [], []
    for _ in range(2 * bench.updates):
        updates.append(_seconds(me.update))
        mixes = me.exchange.counters().mixes
        messages.append(len(mixes))
        ages += [me.learner.updates - mix.version for mix in mixes]
    me.close()
    steps = settings.num_envs * settings.rollout_length
    mine = {
        "steps_per_second": steps * len(updates) / sum(updates),
        "update": statistics.median(updates),
        "exchange": statistics.median(timed.exchanges),
        "mixing_exchange": statistics.median(timed.mixing or timed.exchanges),
        "copy": statistics.median(timed.copies),
        "allreduce": allreduce(world, size),
        "messages": statistics.mean(messages),
        "age": statistics.median(ages or [float("nan")]),
    }
    ranks = world.gather(mine)
    if not world.root:
        return {}
    figures = {name: statistics.median(rank[name] for rank in ranks) for name in mine}
    return figures | {
        "bytes": 4 * size,
        "steps_per_second": sum(rank["steps_per_second"] for rank in ranks),
        "copies": figures["mixing_exchange"] / figures["copy"],
        "share": figures["exchange"] / figures["update"],
    }


def allreduce(world: World, size: int) -> float:
    """Seconds of an Allreduce of as many float32, median. Collective."""
    mine, total, spent = np.ones(size, np.float32), np.empty(size, np.float32), []
    for _ in range(ALLREDUCES):
        world.comm.Barrier()
        spent.append(_seconds(world.comm.Allreduce, mine, total))
    return statistics.median(spent)


def show(figures: dict[str, Any], bench: ExchangeBench, settings: Config) -> None:
    display.say(
        f"{settings.env}, {settings.exchange} over {settings.topology}, network {settings.network}: "
        f"{figures['bytes']:,} bytes a message; {figures['ranks']} ranks on {figures['hosts']} hosts, {figures['mpi']}; "
        f"medians of {bench.updates} updates"
    )
    table = Table("", "µs", "copies", "share of an update")
    for name, key in (
        ("a copy of a message's bytes", "copy"),
        ("exchange, all", "exchange"),
        ("exchange that mixed", "mixing_exchange"),
        ("Allreduce of the same bytes", "allreduce"),
        ("update", "update"),
    ):
        spent = figures[key]
        table.add_row(name, f"{1e6 * spent:,.0f}", f"{spent / figures['copy']:,.1f}", f"{spent / figures['update']:.2%}")
    display.console().print(table)
    display.say(
        f"{figures['steps_per_second']:,.0f} steps/s; {figures['messages']:.2f} messages mixed an update, "
        f"median age {figures['age']:g} updates"
    )
