"""Measure how fast training is, compared with a limit of the machine.

Rank 0 trains alone (the others sleep), then all ranks train, in turn, with the same settings. The limit takes for each step
the environments' own time plus the time of its arithmetic at the rate of a large matrix product,

    1 / (1 / environments + FLOPs per step / rate)  steps/s.

Both rates are measured here, on one rank or on all at the same time, as the training is. Torch counts the FLOPs of an update.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from gala_mpi import display
from gala_mpi.cli import Unprefixed
from gala_mpi.clock import SECTIONS
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.job import build
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.world import World
from gala_mpi.rollout.kernels import torch_alone

WARM_UP_UPDATES = 10
MATRIX = 1024  # rows and columns of the matrices whose product is timed
PRODUCTS = 30


@dataclass(frozen=True)
class TrainBench:
    """Measure the training loop: one rank alone, all ranks, and where the time of an update goes."""

    settings: Unprefixed[Config] = field(default_factory=Config)
    """What is trained."""
    rounds: int = 3
    """How many rounds of turns are measured; medians over the rounds are printed."""
    updates: int = 150
    """Updates of each rank in a turn."""
    json: bool = False
    """Print one JSON object instead of tables."""


def measure(world: World, bench: TrainBench, settings: Config) -> dict[str, Any]:
    """Return figures for rank 0 alone and for all ranks together, each with its share of the limit, and their ratio.

    Collective.
    """
    rounds = [{alone: turn(world, settings, alone, bench.updates) for alone in (True, False)} for _ in range(bench.rounds)]
    (passes,) = {turn.pop("passes") for round in rounds for turn in round.values()}
    one, every = (median([round[alone] for round in rounds]) for alone in (True, False))
    ratio = every["steps_per_second"] / one["steps_per_second"]
    return {"one_rank": one, "all_ranks": every, "ratio": ratio, "passes": passes}


def turn(world: World, settings: Config, alone: bool, updates: int) -> dict[str, Any]:
    """Train on rank 0 alone or on all ranks. Return rates as sums over the ranks, seconds per update as means, and how the
    forward passes of a rollout are differentiated (`rollout.batch.Passes`). Collective."""
    comm = world.part(1 if alone else world.size)
    own = None
    if comm is not None:
        agent = build.build(settings, comm, world.node.rank, world.threads)
        device, dtype = agent.learner.flat.data.device, agent.learner.network.dtype
        comm.Barrier()
        environments = environments_alone(settings, world.threads, updates)
        comm.Barrier()
        products = matrix_products(device, dtype)
        agent.start()
        with torch_alone(), FlopCounterMode(display=False) as counter:  # which sees torch's products in this thread
            batch, _ = agent.collector.collect()
            for part in agent.learner.parts(batch):
                agent.learner.gradient(part)
        flops_per_step = counter.get_total_flops() / agent.collector.steps
        for _ in range(WARM_UP_UPDATES):
            agent.update()
        agent.clock.lap()
        began, before = time.perf_counter(), agent.learner.steps
        for _ in range(updates):
            agent.update()
        elapsed, steps = time.perf_counter() - began, agent.learner.steps - before
        sections = {section: spent / updates for section, spent in agent.clock.lap().items()}
        rates = {"steps_per_second": steps / elapsed, "environments": environments, "flops_per_second": products}
        own = rates | {"flops_per_step": flops_per_step, "update": elapsed / updates, **sections}
        own |= {"passes": agent.collector.passes.name}
        agent.close()
        Roll.of(comm).close()
        comm.Free()
    world.wait()
    every = [one for one in world.comm.allgather(own) if one]
    (passes,) = {one.pop("passes") for one in every}
    together = {name: statistics.mean(one[name] for one in every) for name in every[0]}
    together |= {name: sum(one[name] for one in every) for name in ("steps_per_second", "environments", "flops_per_second")}
    limit = 1 / (1 / together["environments"] + together["flops_per_step"] / together["flops_per_second"])
    return together | {"limit": limit, "reached": together["steps_per_second"] / limit, "passes": passes}


def environments_alone(settings: Config, threads: int, updates: int) -> float:
    """Return the steps/s of one rank's environments with random actions."""
    options = {"threads": threads, "workers": settings.env_workers, **settings.env_options}
    environments = registry.make(settings.env, settings.num_envs, **options)
    observations = environments.reset(np.arange(settings.num_envs))
    rng = np.random.default_rng(0)
    steps, began = updates * settings.length, time.perf_counter()
    for _ in range(steps):
        observations = environments.step(environments.spaces.random_actions(rng, observations)).observations
    environments.close()
    return steps * settings.num_envs / (time.perf_counter() - began)


def matrix_products(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of a large matrix product, the median of PRODUCTS."""
    # The result is written into an existing matrix: a new one has no pages yet, which took a sixth of the time in bfloat16.
    a, b, product = (torch.ones(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(3))
    times = []
    for _ in range(PRODUCTS):
        began = time.perf_counter()
        torch.mm(a, b, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * MATRIX**3 / statistics.median(times)


def median(turns: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the turns."""
    return {name: statistics.median(one[name] for one in turns) for name in turns[0]}


def show(figures: dict[str, Any], bench: TrainBench, settings: Config) -> None:
    """Print the figures as tables."""
    console, ranks = display.console(), figures["ranks"]
    turns = {"one rank": figures["one_rank"], f"{ranks} ranks": figures["all_ranks"]}
    display.say(
        f"{settings.env}, {settings.exchange}, {settings.learner}, network {settings.network} in {settings.precision}, "
        f"{settings.num_envs} environments a rank, lag {settings.lag}; "
        f"medians of {bench.rounds} turns of {bench.updates} updates"
    )
    speeds = Table("", *turns)
    for name, text in (
        ("forward passes of a rollout", lambda _: figures["passes"]),
        ("environments alone, steps/s", lambda turn: f"{turn['environments']:,.0f}"),
        (f"matrix products in {settings.precision}, GFLOP/s", lambda turn: f"{1e-9 * turn['flops_per_second']:,.0f}"),
        ("MFLOP a step", lambda turn: f"{1e-6 * turn['flops_per_step']:.1f}"),
        ("limit from these, steps/s", lambda turn: f"{turn['limit']:,.0f}"),
        ("training, steps/s", lambda turn: f"{turn['steps_per_second']:,.0f}"),
        ("share of the limit", lambda turn: f"{turn['reached']:.0%}"),
        ("times one rank", lambda turn: f"{turn['steps_per_second'] / figures['one_rank']['steps_per_second']:.2f}"),
    ):
        speeds.add_row(name, *map(text, turns.values()))
    console.print(speeds)
    parts = Table("part of an update", f"ms, {ranks} ranks", "share")
    together = figures["all_ranks"]
    for section in (*SECTIONS, "update"):
        spent = together[section]
        parts.add_row(section, f"{1e3 * spent:.2f}", f"{spent / together['update']:.1%}")
    console.print(parts)
