"""Measure what an exchange costs in real training, compared with a copy of the same bytes and with an Allreduce of them.

At every second update the exchange is timed; at the others a plain copy of the parameters just before it, so that both
find the caches in the same state. (Publishing is not part of an exchange: the optimiser writes its step into the window.) The
Allreduce is timed in a loop of its own, which all ranks enter together, so that the time is that of the operation and not of
waiting for the slowest rank.
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
from gala_mpi.cli import Unprefixed
from gala_mpi.config import Config
from gala_mpi.exchange.base import Exchange
from gala_mpi.job import build
from gala_mpi.mpi.world import World

WARM_UP_UPDATES = 10
ALLREDUCES = 50


@dataclass(frozen=True)
class ExchangeBench:
    """Compare an exchange with a copy of the same bytes and with Allreduce, and give its share of an update."""

    settings: Unprefixed[Config] = field(default_factory=Config)
    """What is trained."""
    updates: int = 200
    """Updates of each rank whose exchange is timed; at as many others a copy is timed."""
    json: bool = False
    """Print one JSON object instead of tables."""


class Timed:
    """An exchange that is timed at every second update, and at the others a copy of the same parameters. Times in seconds."""

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
    """Return how long a call takes, in seconds."""
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def measure(world: World, bench: ExchangeBench, settings: Config) -> dict[str, Any]:
    """Return figures on rank 0: medians over the updates of each rank, then over the ranks. Collective.

    Times are in seconds; `age`, the lag of the messages mixed, is in updates, and below zero where a neighbour is ahead.
    """
    agent = build.build(settings, world.comm, world.node.rank, world.threads)
    size = len(agent.learner.flat)
    agent.start()
    for _ in range(WARM_UP_UPDATES):
        agent.update()
    timed = Timed(agent.exchange, size)
    agent.exchange = cast(Exchange, timed)
    updates, messages, lags = [], [], []
    for _ in range(2 * bench.updates):
        updates.append(_seconds(agent.update))
        mixes = agent.exchange.counters().mixes
        messages.append(len(mixes))
        lags += [agent.learner.updates - mix.version for mix in mixes]
    agent.close()
    steps = settings.steps_per_update
    own = {
        "steps_per_second": steps * len(updates) / sum(updates),
        "update": statistics.median(updates),
        "exchange": statistics.median(timed.exchanges),
        "mixing_exchange": statistics.median(timed.mixing or timed.exchanges),
        "copy": statistics.median(timed.copies),
        "allreduce": allreduce(world, size),
        "messages": statistics.mean(messages),
        "age": statistics.median(lags or [float("nan")]),
    }
    ranks = world.gather(own)
    if not world.root:
        return {}
    figures = {name: statistics.median(rank[name] for rank in ranks) for name in own}
    return figures | {
        "bytes": 4 * size,
        "steps_per_second": sum(rank["steps_per_second"] for rank in ranks),
        "copies": figures["mixing_exchange"] / figures["copy"],
        "share": figures["exchange"] / figures["update"],
    }


def allreduce(world: World, size: int) -> float:
    """Return the median time of an Allreduce of `size` float32, in seconds. Collective."""
    vector, total, times = np.ones(size, np.float32), np.empty(size, np.float32), []
    for _ in range(ALLREDUCES):
        world.comm.Barrier()
        times.append(_seconds(world.comm.Allreduce, vector, total))
    return statistics.median(times)


def show(figures: dict[str, Any], bench: ExchangeBench, settings: Config) -> None:
    """Print the figures as a table."""
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
        f"median lag {figures['age']:g} updates"
    )
