"""Stopping together, saving together, and ending at different times without a hang."""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np
import pytest
import torch
from descent import (
    ALLREDUCE,
    BOUNDED,
    EVERY,
    FREE,
    LENGTH,
    LOCKSTEP,
    NONE,
    PERIODIC,
    SERVER,
    gossip,
    jitter,
    named,
    run,
    step,
)
from mpi4py import MPI

from gala_mpi import topology
from gala_mpi.config import Config
from gala_mpi.exchange import EXCHANGES
from gala_mpi.exchange.base import Order
from gala_mpi.job.build import build_exchange
from gala_mpi.topology import Graph

# Stopping and saving together.


def pairs(size: int) -> list[tuple[int, int]]:
    """(who asks first, who asks a little later); the same rank twice: nobody else asks."""
    return [(first, second) for first in range(size) for second in {first, (first + 1) % size, 0}]


@pytest.mark.parametrize("config", named([*LOCKSTEP, ALLREDUCE, PERIODIC]))
def test_ranks_in_step_stop_at_the_same_update(comm, config):
    for first, second in pairs(comm.size):

        def wish(k: int) -> Order:
            return Order(stop=(comm.rank == first and k >= 5) or (comm.rank == second and k >= 7))

        trace = run(comm, config, 50, wish=wish, pause=jitter(comm.rank))
        stopped_at = comm.allgather(len(trace.orders))
        assert len(set(stopped_at)) == 1, f"ranks {first} and {second} asked; all stopped at {stopped_at}"
        assert 5 <= stopped_at[0] <= 7 + soon(comm, config) and trace.ended


def soon(comm: MPI.Intracomm, config: Config) -> int:
    """Return after how many updates all know of a wish."""
    return max(comm.size, EXCHANGES[config.exchange].load().propagation_delay(config, comm.size))


@pytest.mark.parametrize("period", [0.01, 20])
@pytest.mark.parametrize("config", named([*LOCKSTEP, ALLREDUCE, PERIODIC]))
def test_ranks_in_step_save_at_the_same_updates(comm, config, period):
    """Each by its own schedule, as in train.py: due again one period after the last time it was due.

    With a very short period every rank wants to save all the time.
    """
    x = torch.zeros(LENGTH)
    random = np.random.default_rng(comm.rank)
    saved, due = [], period
    with closing(build_exchange(config, comm, LENGTH)) as exchange:
        exchange.start(0, x)
        for k in range(1, 101):
            time.sleep(5e-4 * random.random())
            exchange.gradient(x)
            step(exchange, x)
            clock = k + random.random()  # ranks do not look at their clocks at the same moment
            if exchange.agree(Order(save=clock >= due)).save:
                saved.append(k)
                due += period
    everybody = comm.allgather(saved)
    assert all(saves == everybody[0] for saves in everybody), everybody
    assert 4 <= len(saved) <= (5 if period == 20 else 100)


@pytest.mark.parametrize("gradients", [1, 3])
@pytest.mark.parametrize("config", named([*LOCKSTEP, ALLREDUCE, PERIODIC]))
def test_wishes_that_are_made_once_are_heeded(comm, config, gradients):
    """A stop is ordered from then on, for who does not stop at once (an exact run, before its next checkpoint); a save once.
    PPO has several gradients an update."""
    trace = []
    x = torch.zeros(LENGTH)
    with closing(build_exchange(config, comm, LENGTH)) as exchange:
        exchange.start(0, x)
        for k in range(1, 61):
            for _ in range(gradients):
                exchange.gradient(x)
            step(exchange, x)
            stop = k == 31 and comm.rank == comm.size - 1
            trace.append(exchange.agree(Order(stop=stop, save=k == 13 and comm.rank == 0)))
    stops, saves = ([k for k, order in enumerate(trace, 1) if getattr(order, what)] for what in ("stop", "save"))
    assert stops == list(range(stops[0], 61)) and 31 <= stops[0] <= 31 + 2 * soon(comm, config) + 3
    assert len(saves) == 1 and 13 <= saves[0] <= 13 + 2 * soon(comm, config) + 3
    assert len(set(map(tuple, comm.allgather([stops[0], *saves])))) == 1


def test_where_news_is_slow_ranks_in_step_stop_and_save_together(comm):
    """Between nodes it goes once in 8 updates; every rank is a node here."""
    graph = topology.resolve(Graph("hierarchical:8"), [str(rank) for rank in range(comm.size)])
    for asking in range(comm.size):

        def wish(k: int) -> Order:
            return Order(stop=comm.rank == asking and k >= 100, save=True)

        trace = run(comm, gossip(graph, 0), 200, wish=wish)
        seen = comm.allgather([(k, order.stop, order.save) for k, order in enumerate(trace.orders) if order != Order()])
        assert all(orders == seen[0] for orders in seen), seen
        assert trace.ended and sum(save for _, _, save in seen[0]) >= 1
        # In seven rounds of eight there is nobody to mix.
        assert comm.size == 1 or trace.staleness[:17] == [*range(1, 7), *range(8), 0, 1, 2]


@pytest.mark.parametrize("config", named([*FREE, *BOUNDED, SERVER, NONE]))
def test_free_ranks_stop_soon_after_one_asks(comm, config):
    ended = []
    for asking in range(comm.size):

        def wish(k: int) -> Order:
            return Order(stop=comm.rank == asking and k >= 5)

        ended.append(run(comm, config, 100_000, wish=wish, pause=lambda k: 1e-3).ended)
    assert all(ended)


@pytest.mark.parametrize("config", named([*FREE, *BOUNDED, SERVER, NONE]))
def test_a_wish_to_stop_is_heard_when_a_peer_has_finished(comm, config):
    """Rank 1 ends after 3 updates, so whoever reads it never mixes again; the last rank asks much later."""
    if comm.size < 3:
        pytest.skip("needs 3 ranks or more")

    def wish(k: int) -> Order:
        return Order(stop=comm.rank == comm.size - 1 and k >= 200)

    trace = run(comm, config, 3 if comm.rank == 1 else 100_000, wish=wish, pause=lambda k: 1e-3)
    assert trace.ended or comm.rank == 1


# The end.


@pytest.mark.parametrize("config", named(EVERY))
def test_ranks_end_at_different_times(comm, config):
    """Rank r does r times as many updates more, where ranks need not move together; and rank 0 is slow in any case."""
    more = 0 if config in [ALLREDUCE, PERIODIC] else 10 * comm.rank
    for slowest in range(comm.size):
        trace = run(comm, config, 20 + more, pause=lambda k: 5e-3 if comm.rank == slowest else 0)
        assert len(trace.orders) == 20 + more


@pytest.mark.parametrize("config", named(EVERY))
def test_no_update_at_all(comm, config):
    """A run that is resumed when it has finished."""
    assert run(comm, config, 0, version=100).orders == []


@pytest.mark.parametrize("config", named([FREE[0], SERVER, NONE]))
def test_who_is_done_can_attend_to_something_while_others_are_not(comm, config, signs):
    exchange, x, calls = build_exchange(config, comm, LENGTH), torch.zeros(LENGTH), []

    def attend() -> None:
        calls.append(len(calls))
        if len(calls) > 3:
            signs.give("has attended")

    exchange.start(0, x)
    if comm.rank == comm.size - 1:
        signs.wait("has attended", signs.others())
    exchange.close(meanwhile=attend)
    assert len(calls) > 3 or comm.rank == comm.size - 1


@pytest.mark.parametrize("config", named([FREE[0], LOCKSTEP[0], ALLREDUCE, PERIODIC, SERVER, NONE]))
def test_windows_are_freed(comm, config):
    length = 1 << 20
    x, sizes = torch.zeros(length), []
    for _ in range(8):
        with closing(build_exchange(config, comm, length)) as exchange:
            exchange.start(0, x)
            step(exchange, x)
        del exchange
        sizes.append(mapped_mib())
    window_mib = 4 * length / 2**20
    # Five windows would be left by then. A vector may be there by chance, or a thread's stack, which is two windows.
    assert sizes[-1] - sizes[2] < 4 * window_mib, f"mapped memory grows: {sizes} MiB"


def mapped_mib() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * 4096 / 2**20
