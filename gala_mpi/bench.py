"""Benchmarks of the real thing.

    mpirun -n 2 python -m gala_mpi.bench train

`train`: rank 0 trains alone (the others sleep), then all ranks train, in turn, with the same settings and threads. Printed:
steps/s of one rank, of all, their ratio, and where an update's time goes. Simulators alone are timed too.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
from rich.table import Table

from gala_mpi import agent, config, display, envs, plan
from gala_mpi.clock import SECTIONS
from gala_mpi.config import Config, TrainBench
from gala_mpi.errors import SettingError
from gala_mpi.world import World

WARM_UP_UPDATES = 10


def main(arguments: list[str]) -> None:
    with World() as world:
        bench, settings = world.decide(lambda: prepare(arguments, world))
        simulators = simulators_alone(settings, bench.updates) if world.root else 0.0
        world.wait()
        alone, together = [], []
        for _ in range(bench.rounds):
            alone.append(turn(world, settings, True, bench.updates))
            together.append(turn(world, settings, False, bench.updates))
        if world.root:
            report(bench, settings, world, simulators, median(alone), median(together))


def prepare(arguments: list[str], world: World) -> tuple[TrainBench, Config]:
    """Parse, check, resolve. Raises SettingError."""
    bench = config.parse_bench(arguments)
    for flag, value in (("--rounds", bench.rounds), ("--updates", bench.updates)):
        if value < 1:
            raise SettingError(f"{flag} {value}: a whole number, 1 or more, is expected")
    config.check(bench.settings)
    return bench, plan.resolve(bench.settings, world)


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


def report(
    bench: TrainBench, settings: Config, world: World, simulators: float, alone: dict[str, float], together: dict[str, float]
) -> None:
    """Print it as tables, or as one JSON object."""
    ratio = together["steps_per_second"] / alone["steps_per_second"]
    if bench.json:
        result = {"ranks": world.size, "simulators_alone": simulators, "one_rank": alone, "all_ranks": together, "ratio": ratio}
        print(json.dumps(result | {"settings": json.loads(settings.to_json())}))
        return
    console = display.console()
    display.say(
        f"{settings.env}, {settings.exchange}, network {settings.network} in {settings.precision}, "
        f"{settings.num_envs} simulators a rank; medians of {bench.rounds} turns of {bench.updates} updates"
    )
    speeds = Table("", "steps/s", "ratio")
    speeds.add_row("one rank's simulators alone", f"{simulators:,.0f}", "")
    speeds.add_row("one rank training", f"{alone['steps_per_second']:,.0f}", "1")
    speeds.add_row(f"{world.size} ranks training", f"{together['steps_per_second']:,.0f}", f"{ratio:.2f}")
    console.print(speeds)
    parts = Table("part of an update", f"ms, {world.size} ranks", "share")
    for section in (*SECTIONS, "update"):
        spent = together[section]
        parts.add_row(section, f"{1e3 * spent:.2f}", f"{spent / together['update']:.1%}")
    console.print(parts)


if __name__ == "__main__":
    main(sys.argv[1:])
