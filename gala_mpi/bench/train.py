"""How fast training is: rank 0 trains alone (the others sleep), then all ranks train, in turn, with the same settings.

Printed: steps/s of one rank, of all, their ratio, and where an update's time goes. Simulators alone are timed too.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from rich.table import Table

from gala_mpi import agent, display, envs
from gala_mpi.clock import SECTIONS
from gala_mpi.config import Config, TrainBench
from gala_mpi.world import World

WARM_UP_UPDATES = 10


def measure(world: World, bench: TrainBench, settings: Config) -> dict[str, Any]:
    """Figures on rank 0: steps/s of one rank and of all, their ratio, seconds per update and section."""
    simulators = simulators_alone(settings, bench.updates) if world.root else 0.0
    world.wait()
    alone, together = [], []
    for _ in range(bench.rounds):
        alone.append(turn(world, settings, True, bench.updates))
        together.append(turn(world, settings, False, bench.updates))
    one, every = median(alone), median(together)
    ratio = every["steps_per_second"] / one["steps_per_second"]
    return {"simulators_alone": simulators, "one_rank": one, "all_ranks": every, "ratio": ratio}


def simulators_alone(settings: Config, updates: int) -> float:
    """Steps/s of one rank's simulators under random actions, with one thread."""
    simulators = envs.make(settings.env, settings.num_envs, sticky=settings.sticky)
    simulators.reset(np.arange(settings.num_envs))
    rng, spaces = np.random.default_rng(0), simulators.spaces
    shape = (settings.num_envs, *spaces.action_shape)
    steps, began = updates * settings.rollout_length, time.perf_counter()
    for _ in range(steps):
        simulators.step(rng.integers(spaces.actions, size=shape) if spaces.discrete else rng.normal(size=shape))
    simulators.close()
    return steps * settings.num_envs / (time.perf_counter() - began)


def turn(world: World, settings: Config, alone: bool, updates: int) -> dict[str, float]:
    """Train rank 0 alone or all ranks: the ranks' steps/s together, and seconds per update and section, their mean."""
    comm = world.part(alone)
    mine = None
    if comm is not None:
        me = agent.build(settings, comm, world.node.rank, world.threads)
        me.start()
        for _ in range(WARM_UP_UPDATES):
            me.update()
        me.clock.lap()
        began = time.perf_counter()
        for _ in range(updates):
            me.update()
        elapsed = time.perf_counter() - began
        sections = {section: spent / updates for section, spent in me.clock.lap().items()}
        steps = updates * settings.num_envs * settings.rollout_length
        mine = {"steps_per_second": steps / elapsed, "update": elapsed / updates, **sections}
        me.close()
        comm.Free()
    world.wait()
    every = [one for one in world.comm.allgather(mine) if one]
    mean = {name: statistics.mean(one[name] for one in every) for name in every[0]}
    return mean | {"steps_per_second": sum(one["steps_per_second"] for one in every)}


def median(turns: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in turns) for name in turns[0]}


def show(figures: dict[str, Any], bench: TrainBench, settings: Config) -> None:
    console, ranks = display.console(), figures["ranks"]
    alone, together = figures["one_rank"], figures["all_ranks"]
    display.say(
        f"{settings.env}, {settings.exchange}, network {settings.network} in {settings.precision}, "
        f"{settings.num_envs} simulators a rank; medians of {bench.rounds} turns of {bench.updates} updates"
    )
    speeds = Table("", "steps/s", "ratio")
    speeds.add_row("one rank's simulators alone", f"{figures['simulators_alone']:,.0f}", "")
    speeds.add_row("one rank training", f"{alone['steps_per_second']:,.0f}", "1")
    speeds.add_row(f"{ranks} ranks training", f"{together['steps_per_second']:,.0f}", f"{figures['ratio']:.2f}")
    console.print(speeds)
    parts = Table("part of an update", f"ms, {ranks} ranks", "share")
    for section in (*SECTIONS, "update"):
        spent = together[section]
        parts.add_row(section, f"{1e3 * spent:.2f}", f"{spent / together['update']:.1%}")
    console.print(parts)
