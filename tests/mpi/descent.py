"""Gradient descent through an exchange, and the settings of all exchanges."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from mpi4py import MPI

from gala_mpi.config import Config
from gala_mpi.exchange.base import Exchange, Mix, Order
from gala_mpi.job.build import build_exchange
from gala_mpi.topology import Graph

TOPOLOGIES = ["ring", "exponential", "one-peer-exponential", "complete", "torus"]
LENGTH = 64


def gossip(graph: str | Graph = "ring", staleness: int | None = None) -> Config:
    graph = Graph(graph) if isinstance(graph, str) else graph
    return Config(exchange="gossip", topology=graph, staleness=staleness)


def named(configs: list[Config]) -> list:
    names = [(c.exchange, c.topology, c.staleness) if c.exchange == "gossip" else (c.exchange,) for c in configs]
    return [pytest.param(config, id="-".join(map(str, name))) for config, name in zip(configs, names)]


LOCKSTEP = [gossip(graph, 0) for graph in [*TOPOLOGIES, "base", "base:2"]]
FREE = [gossip(graph) for graph in TOPOLOGIES]
BOUNDED = [gossip(graph, 3) for graph in TOPOLOGIES]
ALLREDUCE, SERVER, NONE = (Config(exchange=name) for name in ("allreduce", "server", "none"))
PERIODIC = Config(exchange="periodic", sync_updates=3)
EVERY = [*FREE, *BOUNDED, *LOCKSTEP, ALLREDUCE, PERIODIC, SERVER, NONE]


@dataclass
class Trace:
    """What one rank saw in each of its updates."""

    parameters: np.ndarray
    mixes: list[list[Mix]] = field(default_factory=list)
    staleness: list[int] = field(default_factory=list)
    orders: list[Order] = field(default_factory=list)
    ended: bool = False  # whether it stopped because it was ordered to


def run(
    comm: MPI.Intracomm,
    config: Config,
    updates: int,
    gradient: Callable[[np.ndarray, int], np.ndarray] = lambda x, k: np.zeros_like(x),
    lr: Callable[[int], float] = lambda k: 0.1,
    wish: Callable[[int], Order] = lambda k: Order(),
    pause: Callable[[int], float] = lambda k: 0.0,
    version: int = 0,
    begin: np.ndarray | None = None,
) -> Trace:
    """Gradient descent from `begin` (or 0) through an exchange, as train.py does it. Update k = version + 1, version + 2 ..."""
    x = np.zeros(LENGTH, np.float32) if begin is None else begin.copy()
    vector, trace = torch.from_numpy(x), Trace(x)  # the same memory
    with closing(build_exchange(config, comm, LENGTH)) as exchange:
        exchange.start(version, vector)
        for k in range(version + 1, version + updates + 1):
            time.sleep(pause(k))
            exchange.progress()
            g = gradient(x, k).astype(np.float32)
            exchange.gradient(torch.from_numpy(g))
            step, room = np.float32(lr(k)) * g, exchange.room()
            if room is None:
                x -= step
            else:
                torch.sub(vector, torch.from_numpy(step), out=room)
                x[:] = np.nan
            exchange.parameters(vector)
            counters = exchange.counters()
            trace.mixes.append(counters.mixes)
            trace.staleness.append(counters.staleness)
            trace.orders.append(exchange.agree(wish(k)))
            if trace.orders[-1].stop:
                trace.ended = True
                break
    return trace


def step(exchange: Exchange, parameters: torch.Tensor) -> None:
    """An optimiser's step that changes nothing."""
    room = exchange.room()
    if room is not None:
        room.copy_(parameters)
    exchange.parameters(parameters)


def jitter(seed: int) -> Callable[[int], float]:
    """Pauses of 0 to 1 ms, so that the ranks come in another order in every run."""
    random = np.random.default_rng(seed)
    return lambda k: 1e-3 * random.random()
