"""Compare several agents on one host, or on its GPU, with one A2C agent that has all their environments.

The GALA paper claims that small agents which never wait use a GPU better than one large agent. For 1, 2, 4, ... agents, GALA
and a single agent with as many environments as they have together are measured in turn; each has all cores of the host.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from gala_mpi import display
from gala_mpi.cli import Unprefixed
from gala_mpi.config import Config
from gala_mpi.job import build
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.world import World
from gala_mpi.record.energy import Meter, Reading

WARM_UP_UPDATES = 10
SECONDS_BETWEEN_READINGS = 1.0  # NVML reports how busy a GPU was over the last second at most
FIGURES = ("steps_per_second", "cores_busy", "gpus_busy", "cpu_watts", "gpu_watts", "node_watts")


@dataclass(frozen=True)
class AgentsBench:
    """Compare 1, 2, 4, ... agents on one host (or its GPU) with one A2C agent of as many environments: speed, load, power."""

    settings: Unprefixed[Config] = field(default_factory=Config)
    """What is trained. --num-envs is the number of environments of each GALA agent."""
    seconds: float = 10.0
    """How long each turn lasts."""
    rounds: int = 3
    """How many rounds of turns are measured; medians over the rounds are printed."""
    json: bool = False
    """Print one JSON object instead of tables."""


def measure(world: World, bench: AgentsBench, settings: Config) -> dict[str, Any]:
    """Return figures on rank 0: a row for each number of agents and each of the two; None where not available. Collective."""
    entrants = []
    for number in numbers(world.size):
        several = dataclasses.replace(settings, exchange="gossip")
        one = dataclasses.replace(settings, exchange="allreduce", num_envs=number * settings.num_envs)
        entrants += [("GALA", number, several), ("A2C", 1, one)]
    turns = [[turn(world, each, agents, bench.seconds) for _, agents, each in entrants] for _ in range(bench.rounds)]
    if not world.root:
        return {}
    rows = []
    for (who, agents, each), figures in zip(entrants, zip(*turns)):
        medians = {name: median([figure[name] for figure in figures]) for name in FIGURES}
        rows.append({"who": who, "agents": agents, "environments": each.num_envs} | medians)
    return {"rows": rows}


def numbers(ranks: int) -> list[int]:
    """Return the numbers of agents to measure: 1, 2, 4, ... and `ranks`."""
    return sorted({1 << k for k in range(ranks.bit_length())} | {ranks})


def turn(world: World, settings: Config, agents: int, seconds: float) -> dict[str, float]:
    """Train `agents` agents for `seconds`, and return the sum of their steps/s and the host's load and power meanwhile.

    Collective; empty on other ranks than 0.
    """
    comm, own_rate, readings = world.part(agents), None, []
    if comm is not None:
        agent = build.build(settings, comm, world.node.rank, max(1, int(world.view.cores / agents)))
        agent.start()
        for _ in range(WARM_UP_UPDATES):
            agent.update()
        comm.Barrier()
        meter = Meter()
        began = read = time.perf_counter()
        before, elapsed = agent.learner.steps, 0.0
        while elapsed < seconds:
            agent.update()
            elapsed = time.perf_counter() - began
            if world.root and began + elapsed - read >= SECONDS_BETWEEN_READINGS:
                readings.append(meter.read())
                read = time.perf_counter()
        readings.append(meter.read())
        own_rate = (agent.learner.steps - before) / elapsed
        agent.close()
        Roll.of(comm).close()
        comm.Free()
    world.wait()
    rates = world.gather(own_rate)
    return {"steps_per_second": sum(filter(None, rates))} | used(readings) if world.root else {}


def used(readings: list[Reading]) -> dict[str, float]:
    """Return load and power, as means over the readings that have them; NaN where none has."""

    def mean(name: str, amount: Callable[[Reading], float]) -> float:
        there = [reading for reading in readings if not math.isnan(getattr(reading, name))]
        seconds = sum(reading.seconds for reading in there)
        return sum(map(amount, there)) / seconds if seconds else math.nan

    def share(name: str) -> float:
        return mean(name, lambda reading: reading.seconds * getattr(reading, name))

    def watts(name: str) -> float:
        return mean(name, lambda reading: getattr(reading, name))

    return {
        "cores_busy": share("cores_busy"),
        "gpus_busy": share("gpus_busy"),
        "cpu_watts": watts("cpu_joules"),
        "gpu_watts": watts("gpu_joules"),
        "node_watts": watts("node_joules"),
    }


def median(values: list[float]) -> float | None:
    """Return the median; None if it is NaN."""
    middle = statistics.median(values)
    return None if math.isnan(middle) else middle


def show(figures: dict[str, Any], bench: AgentsBench, settings: Config) -> None:
    """Print the figures as a table."""
    display.say(
        f"{settings.env}, network {settings.network} in {settings.precision} on {settings.device}, {figures['mpi']}; "
        f"medians of {bench.rounds} turns of {bench.seconds:g} s"
    )
    table = Table("", "agents × environments", "steps/s", "times A2C", "cores busy", "GPUs busy", "W: CPU", "GPU", "node")
    for several, one in zip(figures["rows"][::2], figures["rows"][1::2]):
        for row in (several, one):
            table.add_row(
                row["who"],
                f"{row['agents']} × {row['environments']}",
                f"{row['steps_per_second']:,.0f}",
                f"{row['steps_per_second'] / one['steps_per_second']:.2f}",
                *(_format(row[name], "{:.0%}") for name in ("cores_busy", "gpus_busy")),
                *(_format(row[name], "{:,.0f}") for name in ("cpu_watts", "gpu_watts", "node_watts")),
            )
        table.add_section()
    display.console().print(table)


def _format(value: float | None, template: str) -> str:
    return "-" if value is None else template.format(value)
