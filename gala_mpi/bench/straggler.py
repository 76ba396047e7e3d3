"""Measure what one slow rank costs: gossip and all-reduce, each without and with a straggler, in turn. With --preempt
all-reduce has two turns more, in which the others do not wait for whole rollouts of the straggler.

What the others keep of their speed says how much they wait. When a run ends says it once more: gossip trains until the steps
of all agents add up to what they do together in a turn, which takes a turn if nobody waits for the slow one. All-reduce does
equal shares, at the speed that was measured.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from gala_mpi import display
from gala_mpi.cli import Unprefixed
from gala_mpi.config import Config
from gala_mpi.exchange.base import Order
from gala_mpi.job import build
from gala_mpi.job.steps import Steps
from gala_mpi.mpi.live_board import COLUMNS, LiveBoard
from gala_mpi.mpi.world import World

EXCHANGES = ("gossip", "allreduce")
PREEMPTED = "allreduce, preempted"
SLOWED = 10  # factor by which the straggler is slowed, unless --slow-rank sets its delay
WARM_UP_UPDATES = 10


@dataclass(frozen=True)
class StragglerBench:
    """Compare gossip with all-reduce, each with and without a straggler: what one slow rank costs the others. With --exchange
    allreduce --preempt FRACTION preempted all-reduce is compared as well."""

    settings: Unprefixed[Config] = field(default_factory=Config)
    """What is trained. Without --slow-rank the last rank is slowed tenfold."""
    seconds: float = 15.0
    """How long each turn lasts."""
    json: bool = False
    """Print one JSON object instead of tables."""


def measure(world: World, bench: StragglerBench, settings: Config) -> dict[str, Any]:
    """Return the steps/s of every rank, by exchange, without ("even") and with the straggler ("uneven"). Collective."""
    slow_rank, figures = settings.slow_rank, {}
    for name, told in compared(settings).items():
        even = turn(world, dataclasses.replace(told, slow_rank=None), bench.seconds)
        if slow_rank is None:
            update = settings.steps_per_update / statistics.median(even)
            slow_rank = f"{world.size - 1}:{1e3 * (SLOWED - 1) * update:.0f}ms"
        uneven = turn(world, dataclasses.replace(told, slow_rank=slow_rank), bench.seconds)
        figures[name] = {"even": even, "uneven": uneven}
    assert slow_rank is not None  # set at the first exchange at the latest
    straggler = int(slow_rank.partition(":")[0])
    for figure in figures.values():
        kept = [uneven / even for even, uneven in zip(figure["even"], figure["uneven"])]
        figure["straggler"] = kept.pop(straggler)
        figure |= {"kept": statistics.mean(kept), "worst": min(kept)}
    rates = figures["gossip"]["uneven"]
    total = max(1, round(sum(rates) * bench.seconds))
    uneven = dataclasses.replace(compared(settings)["gossip"], slow_rank=slow_rank, total_steps=total)
    figures["gossip"]["seconds_to_finish"], own = finish(world, uneven)
    for name in figures.keys() - {"gossip"}:
        figures[name]["seconds_to_finish"] = total / sum(figures[name]["uneven"])
    # Of the same turn: speeds differ from one to the next.
    return figures | {"slow_rank": slow_rank, "steps": total, "seconds_if_nobody_waits": total / sum(own)}


def compared(settings: Config) -> dict[str, Config]:
    """Return the settings of each exchange that is compared."""
    found = {name: dataclasses.replace(settings, exchange=name, preempt=None) for name in EXCHANGES}
    return found if settings.preempt is None else found | {PREEMPTED: settings}


def turn(world: World, settings: Config, seconds: float) -> list[float]:
    """Train for `seconds`, and return the steps/s of all ranks. Collective."""
    agent = build.build(settings, world.comm, world.node.rank, world.threads)
    agent.start()
    for _ in range(WARM_UP_UPDATES):
        agent.update()
        agent.exchange.agree(Order())
    began, before, elapsed, order = time.perf_counter(), agent.learner.steps, 0.0, Order()
    while not order.stop:
        agent.update()
        elapsed = time.perf_counter() - began
        order = agent.exchange.agree(Order(stop=elapsed >= seconds))
    agent.close()
    return world.comm.allgather((agent.learner.steps - before) / elapsed)


def finish(world: World, settings: Config) -> tuple[float, list[float]]:
    """Train until the run's steps are done; return after how many seconds the last rank was, and the steps/s of all ranks up
    to their own ends. Collective."""
    agent = build.build(settings, world.comm, world.node.rank, world.threads)
    board = LiveBoard(world.comm)
    steps = Steps(settings, world, agent.learner, heard=lambda: board.steps)
    agent.start()
    world.wait()
    began = time.perf_counter()
    while not steps.done():
        agent.update(steps.progress())
        board.post(**dict.fromkeys(COLUMNS, 0.0) | {"updates": agent.learner.updates, "steps": agent.learner.steps})
        board.poll()
        agent.exchange.agree(Order())
    elapsed = time.perf_counter() - began
    agent.close(meanwhile=board.poll)
    board.close()
    return world.largest(elapsed), world.comm.allgather(agent.learner.steps / elapsed)


def show(figures: dict[str, Any], bench: StragglerBench, settings: Config) -> None:
    """Print the figures as a table."""
    display.say(
        f"{settings.env}, network {settings.network} in {settings.precision}, {figures['ranks']} ranks, {figures['mpi']}; "
        f"rank:delay {figures['slow_rank']}; each turn {bench.seconds:g} s"
    )
    table = Table("steps/s", "alike", "with a straggler", "the others keep", "the worst of them", "the straggler keeps")
    names = [name for name in (*EXCHANGES, PREEMPTED) if name in figures]
    for name in names:
        figure = figures[name]
        table.add_row(
            name,
            *(" ".join(f"{rate:,.0f}" for rate in figure[turn]) for turn in ("even", "uneven")),
            *(f"{figure[part]:.1%}" for part in ("kept", "worst", "straggler")),
        )
    display.console().print(table)
    gossip, *others = (figures[name]["seconds_to_finish"] for name in names)
    alone = figures["seconds_if_nobody_waits"]
    display.say(
        f"{figures['steps']:,} steps with the straggler: gossip {gossip:.1f} s ({alone:.1f} s if nobody waits), "
        + " and ".join(f"{gossip / each:.2f} of {name}'s {each:.1f} s" for name, each in zip(names[1:], others))
        + " (by its speed)"
    )
