"""Every way to share: it agrees on the answer, and keeps its promises about waiting.

Where ranks move in step the expected values are exact, from a serial simulation. Where they don't, the bounds hold however
the machine schedules the ranks.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Callable
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
    PERIODIC,
    SERVER,
    TOPOLOGIES,
    gossip,
    jitter,
    named,
    run,
    step,
)
from mpi4py import MPI

from batches import made_up
from gala_mpi import topology
from gala_mpi.config import A2CSettings, Config
from gala_mpi.envs.base import Spaces
from gala_mpi.exchange.agreement import Order
from gala_mpi.exchange.gossip import average
from gala_mpi.job.build import build_exchange
from gala_mpi.learners.a2c import A2C
from gala_mpi.mpi.mailbox import DIRECT, REMOTE, Mailbox, Reach, probe
from gala_mpi.mpi.progress import Progress
from gala_mpi.mpi.roll import Roll
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch
from gala_mpi.topology import Graph


def bowl(rank: int, noise: float = 0.0) -> Callable[[np.ndarray, int], np.ndarray]:
    """The gradient of ½‖x − c‖², with c of this rank's own, plus noise that is the same in every run."""
    return lambda x, k: x - minimum(rank) + noise * np.random.default_rng((rank, k)).standard_normal(LENGTH)


def minimum(rank: int) -> np.ndarray:
    return np.random.default_rng(1000 + rank).standard_normal(LENGTH)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b))


# The common minimum.


def abreast(comm: MPI.Intracomm) -> Callable[[int], float]:
    """No pause, but nobody begins update k + 1 before all have begun update k, however the system schedules the ranks."""
    barriers = [MPI.REQUEST_NULL]

    def wait(k: int) -> float:
        barriers.append(comm.Ibarrier())
        barriers.pop(0).Wait()
        return 0.0

    return wait


@pytest.mark.parametrize("config", named(EVERY))
def test_agents_reach_the_common_minimum(comm, config):
    """The mean of the c_i for those who share, one's own c_i for those who don't.

    With a step that falls like 1/k, gradient descent forgets its start and averages its noise away. Agents that run
    abreast mix at every update or at every second one. If some always do the one and others the other, the latter count
    double, which for two agents moves the goal a third of the way from the mean to a c_i: half of it is the bound.
    """
    noisy = bowl(comm.rank, noise=0.1)
    trace = run(comm, config, 300, noisy, lr=lambda k: 2 / (20 + k), pause=abreast(comm))
    x, everybody = trace.parameters, comm.allgather(trace.parameters)
    mine, centre = minimum(comm.rank), np.mean([minimum(rank) for rank in range(comm.size)], axis=0)
    scale = distance(mine, centre if comm.size > 1 else 0)
    if config.exchange == "none":
        assert distance(x, mine) < 0.1 * scale
        return
    assert distance(x, centre) < 0.5 * scale
    assert distance(x, np.mean(everybody, axis=0)) < 0.25 * scale
    if config in [ALLREDUCE, PERIODIC, *LOCKSTEP]:
        assert distance(np.mean(everybody, axis=0), centre) < 0.1 * scale
    if config in [ALLREDUCE, PERIODIC]:
        assert all(np.array_equal(x, other) for other in everybody)


@pytest.mark.parametrize("config", named(EVERY))
def test_agents_go_on_from_where_they_start(comm, config):
    expected = torch.from_numpy(minimum(0)).float()
    x = expected.clone()
    with closing(build_exchange(config, comm, LENGTH)) as exchange:
        exchange.start(0, x)
        for _ in range(5):
            exchange.gradient(torch.zeros(LENGTH))
            step(exchange, x)
    torch.testing.assert_close(x, expected)


# All-reduce: A2C.


def test_allreduce_keeps_ranks_bit_identical(comm):
    random = np.random.default_rng(comm.rank)
    x = run(comm, ALLREDUCE, 50, gradient=lambda x, k: random.standard_normal(LENGTH) * 10.0 ** random.integers(-6, 6))
    first = comm.bcast(x.parameters)
    assert np.abs(first).max() > 0
    if comm.size > 1:
        assert np.array_equal(x.parameters, first)


A_FEW_UPDATES = [("mlp", Spaces((4,), False, 2), 5), ("gala", Spaces((4, 84, 84), True, 6), 2)]


@pytest.mark.parametrize("name, spaces, updates", A_FEW_UPDATES)
def test_a2c_on_n_ranks_is_one_rank_with_n_times_the_simulators(comm, name, spaces, updates):
    """To rounding: sums of float32 in another order differ by about 1e-6, and each of the first steps of RMSprop on a network
    with rectifiers makes 30 times as much of it."""
    environments, mine = 2, slice(2 * comm.rank, 2 * comm.rank + 2)
    shared = a2c(name, spaces)
    alone = a2c(name, spaces)
    with closing(build_exchange(ALLREDUCE, comm, len(shared.flat))) as exchange:
        exchange.start(0, shared.flat.data)
        for k in range(updates):
            rollout = Rollout(spaces, environments * comm.size, seed=k)
            alone.gradient(rollout.batch(alone.network, slice(None)))
            shared.gradient(rollout.batch(shared.network, mine))
            exchange.gradient(shared.flat.grad)
            alone.step(progress=0)
            shared.step(progress=0)
            exchange.parameters(shared.flat.data)
    assert distance(alone.flat.data.numpy(), a2c(name, spaces).flat.data.numpy()) > 0.01, "nothing was learnt"
    torch.testing.assert_close(shared.flat.data, alone.flat.data, rtol=1e-3, atol=1e-5)


def a2c(name: str, spaces: Spaces) -> A2C:
    torch.manual_seed(0)
    return A2C(Network(name, spaces), A2CSettings(), lr=1e-3)


class Rollout:
    """Made-up steps of many environments; any of them can be made a batch."""

    def __init__(self, spaces: Spaces, environments: int, seed: int, length: int = 5):
        random = np.random.default_rng(seed)
        shape = (length, environments)
        seen = random.integers(0, 256, (*shape, *spaces.observation_shape))
        self.observations = torch.from_numpy(seen.astype(np.uint8) if spaces.image else seen.astype(np.float32) / 128 - 1)
        self.actions = torch.from_numpy(random.integers(0, spaces.actions, shape))
        self.rewards = torch.from_numpy(random.standard_normal(shape).astype(np.float32))
        self.discounts = torch.from_numpy(np.where(random.random(shape) < 0.1, 0, 0.99).astype(np.float32))

    def batch(self, network: Network, chosen: slice) -> Batch:
        seen = self.observations[:, chosen]
        steps = (each[:, chosen] for each in (self.actions, self.rewards, self.discounts))
        return made_up(network, torch.cat([seen, seen[:1]]), *steps)


# Periodic averages: local SGD.


@pytest.mark.parametrize("every", [1, 3, None])
def test_periodic_averages_are_the_recursion_and_repeat_bit_for_bit(comm, every):
    """x ← x − g on every agent alone; after every `every`-th update (None: 10th) all are at the mean."""
    config, updates = Config(exchange="periodic", sync_updates=every), 43
    first, again = (
        run(comm, config, updates, gradient=bowl(comm.rank, 0.1), pause=jitter(seed + comm.rank)) for seed in (0, 100)
    )
    assert np.array_equal(first.parameters, again.parameters)
    x = np.zeros((comm.size, LENGTH))
    for k in range(1, updates + 1):
        x -= 0.1 * np.stack([bowl(rank, 0.1)(x[rank], k) for rank in range(comm.size)])
        if k % (every or 10) == 0:
            x[:] = x.mean(axis=0)
    np.testing.assert_allclose(first.parameters, x[comm.rank], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", named([PERIODIC, ALLREDUCE, SERVER, gossip("complete", 0)]))
def test_periodic_averages_alone_say_when_all_are_at_the_mean(comm, config):
    said = []
    with closing(build_exchange(config, comm, LENGTH)) as exchange:
        x = torch.zeros(LENGTH)
        exchange.start(4, x)
        for _ in range(6):
            exchange.gradient(torch.zeros(LENGTH))
            step(exchange, x)
            said.append(exchange.at_mean())
    expected = [version % 3 == 0 for version in range(5, 11)]
    assert said == (expected if config is PERIODIC and comm.size > 1 else [False] * 6)


@pytest.mark.parametrize("stopped_at", [12, 20])
def test_periodic_averages_go_on_bit_for_bit(comm, stopped_at):
    """Also from between two of them."""
    whole = run(comm, PERIODIC, 30, gradient=bowl(comm.rank, 0.1))
    part = run(comm, PERIODIC, stopped_at, gradient=bowl(comm.rank, 0.1))
    rest = run(comm, PERIODIC, 30 - stopped_at, bowl(comm.rank, 0.1), version=stopped_at, begin=part.parameters)
    assert np.array_equal(rest.parameters, whole.parameters)


# The server: A3C.


def test_all_save_the_one_vector_that_they_share(comm):
    """Also while others add to it; in the end, bit for bit, the one with every step."""
    if comm.size == 1:
        pytest.skip("one agent has a vector of its own")
    x, wait = torch.from_numpy(minimum(0)).float(), jitter(comm.rank)
    exchange = build_exchange(SERVER, comm, LENGTH)
    exchange.start(0, x)
    pushes = []
    for k in range(30):
        time.sleep(wait(k))
        x -= 0.1 * torch.from_numpy(bowl(comm.rank)(x.numpy(), k)).float()
        exchange.parameters(x)
        pushes.append(exchange.shared().pushes)
    assert all(later > earlier for earlier, later in itertools.pairwise(pushes))
    exchange.close()
    last = exchange.shared()
    assert last.pushes == 30 * comm.size
    assert not np.array_equal(last.vector, minimum(0).astype(np.float32))
    assert all(np.array_equal(last.vector, other.vector) for other in comm.allgather(last))


def test_the_lag_of_a_pull_is_what_others_added_until_the_push(comm):
    if comm.size == 1:
        pytest.skip("nobody else adds anything")
    x, lags, others = torch.zeros(LENGTH), [], comm.size - 1
    with closing(build_exchange(SERVER, comm, LENGTH)) as exchange:
        exchange.start(0, x)
        for turn in (0, 1, 0, 0):  # rank 0 adds a step, then every other rank three, then rank 0 two
            for _ in range(3 * turn if comm.rank else 1 - turn):
                exchange.parameters(x)
                lags.append(exchange.counters().lag)
            exchange.shared()  # a look at it is no pull
            comm.Barrier()
    if comm.rank == 0:
        assert lags == [0, 3 * others, 0]
    assert all(0 <= lag <= 1 + 3 * others for lag in lags)
    assert sum(comm.allgather(sum(lags))) > 3 * others


# Lock-step gossip.


@pytest.mark.parametrize("config", named(LOCKSTEP))
def test_lockstep_is_the_recursion_and_repeats_bit_for_bit(comm, config):
    """x ← P_k (x − g), whatever the order in which the ranks come."""
    updates = 40
    first, again = (
        run(comm, config, updates, gradient=bowl(comm.rank, 0.1), pause=jitter(seed + comm.rank)) for seed in (0, 100)
    )
    assert np.array_equal(first.parameters, again.parameters)
    expected = simulate(topology.build(config.topology, comm.size), updates)
    np.testing.assert_allclose(first.parameters, expected[comm.rank], rtol=1e-4, atol=1e-5)


def test_lockstep_mixes_with_the_weights_of_a_file(comm):
    """Agent r reads the one before it with weight 1/4 and agent 0, if that is another, with its own weight."""
    if comm.size == 1:
        pytest.skip("one agent mixes nothing")
    lines = ["0 0 0.75", f"0 {comm.size - 1} 0.25", "1 1 0.75", "1 0 0.25"]
    lines += [f"{rank} {rank - 1} 0.25\n{rank} {rank} 0.125\n{rank} 0 0.625" for rank in range(2, comm.size)]
    file = Graph("my.txt", "\n".join(lines))
    trace = run(comm, gossip(file, 0), 40, gradient=bowl(comm.rank, 0.1), pause=jitter(comm.rank))
    graph = topology.build(file, comm.size)
    assert graph.mixing_matrix(0)[-1, 0] == (0.625 if comm.size > 2 else 0.25)
    np.testing.assert_allclose(trace.parameters, simulate(graph, 40)[comm.rank], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [[0.5], [1 / 3, 1 / 3], [0.25, 0.5, 0.125], [1.0], [0.9, 0.1]])
def test_an_average_has_its_weights(weights):
    vectors = np.random.default_rng(1).standard_normal((1 + len(weights), LENGTH)).astype(np.float32)
    expected = np.array([1 - sum(weights), *weights]) @ vectors.astype(float)
    mine, elsewhere = torch.from_numpy(vectors[0].copy()), torch.full((LENGTH,), torch.nan)
    average(mine, list(vectors[1:]), weights, out=elsewhere)
    np.testing.assert_allclose(elsewhere, expected, atol=1e-6)
    assert np.array_equal(mine, vectors[0])
    average(mine, list(vectors[1:]), weights, out=mine)
    assert torch.equal(mine, elsewhere)


def test_lockstep_is_hierarchical_by_nodes(comm):
    """Two nodes, unequal if they must be."""
    graph = topology.resolve(Graph("hierarchical:3"), [str(2 * rank // comm.size) for rank in range(comm.size)])
    trace = run(comm, gossip(graph, 0), 40, gradient=bowl(comm.rank, 0.1), pause=jitter(comm.rank))
    expected = simulate(topology.build(graph, comm.size), 40)[comm.rank]
    np.testing.assert_allclose(trace.parameters, expected, rtol=1e-4, atol=1e-5)


def simulate(graph: topology.Topology, updates: int) -> np.ndarray:
    x = np.zeros((graph.size, LENGTH))
    for k in range(1, updates + 1):
        g = np.stack([bowl(rank, 0.1)(x[rank], k) for rank in range(graph.size)])
        x = graph.mixing_matrix(k) @ (x - 0.1 * g)
    return x


@pytest.mark.parametrize("config", named(LOCKSTEP))
def test_lockstep_mixes_exactly_its_own_version_of_all_peers(comm, config):
    trace = run(comm, config, 40, pause=jitter(comm.rank))
    graph = topology.build(config.topology, comm.size)
    for k, mixes in enumerate(trace.mixes, start=1):
        weights = graph.mixing_matrix(k)[comm.rank]
        assert [mix[:2] for mix in mixes] == [(peer, k) for peer in graph.in_peers(comm.rank, k)]
        assert [mix.weight for mix in mixes] == pytest.approx([weights[mix.peer] for mix in mixes])
        assert trace.staleness[k - 1] == 0 or not mixes  # in some rounds of a base graph an agent reads nobody


# Staleness.


@pytest.mark.parametrize("bound", [1, 3])
@pytest.mark.parametrize("graph", TOPOLOGIES)
def test_staleness_stays_within_its_bound(comm, graph, bound):
    """Rank 0 is slow; whoever reads it waits. An agent goes beyond the bound only when a peer has finished."""
    updates = 25
    trace = run(comm, gossip(graph, bound), updates, pause=lambda k: 0.01 if comm.rank == 0 else 0)
    seen = {}
    for k, mixes, staleness in zip(range(1, updates + 1), trace.mixes, trace.staleness):
        seen |= {mix.peer: mix.version for mix in mixes}
        if comm.size > 1 and staleness > bound:
            peers = topology.build(Graph(graph), comm.size).in_peers(comm.rank, k)
            assert any(seen.get(peer) == updates for peer in peers), f"update {k} is {staleness} updates after the last mix"
    if comm.size > 1 and comm.rank > 0:
        assert any(trace.mixes)


@pytest.mark.parametrize("graph, bound", [*((graph, None) for graph in TOPOLOGIES), ("ring", 1), ("exponential", 3)])
def test_what_lags_too_far_is_not_mixed(comm, graph, bound, signs):
    """Rank 0 is held up until the others have gone on, or wait for it. By the updates since the start, which differs."""
    config, begin, largest = dataclasses.replace(gossip(graph, bound), max_lag=4), 100 - 10 * comm.rank, 4

    def hold_up(k: int) -> float:
        if comm.size > 1 and comm.rank == 0 and k == begin + 10 and bound is None:
            signs.wait("has gone on", signs.others())
        elif comm.rank and k == begin + 50:
            signs.give("has gone on")
        return 0.01 if comm.rank == 0 else 0.001

    trace = run(comm, config, 60, pause=hold_up, version=begin)
    mixes = [(k - begin, mix) for k, mixes in enumerate(trace.mixes, start=begin + 1) for mix in mixes]
    lags = {k - (mix.version - (100 - 10 * mix.peer)) for k, mix in mixes}
    assert all(lag <= largest for lag in lags), lags
    if comm.size > 1 and reach(comm) is DIRECT and (comm.rank == 0 or bound is not None):
        assert mixes
        assert bound is not None or min(lags) < -10  # the others are ahead


@pytest.mark.parametrize("graph", [*TOPOLOGIES, "base"])
@pytest.mark.parametrize("staleness", [None, 3])
def test_a_message_is_mixed_once(comm, graph, staleness):
    trace = run(comm, gossip(graph, staleness), 60, pause=abreast(comm))
    newest: dict[int, int] = {}
    for peer, version, _ in (mix for mixes in trace.mixes for mix in mixes):
        assert version > newest.get(peer, 0)
        newest[peer] = version
    assert len(newest) == len(topology.build(Graph(graph), comm.size).neighbours(comm.rank))


def test_what_was_rewritten_while_it_was_mixed_is_not_kept(comm, monkeypatch, signs):
    """Rank 0 is held up in the midst of its first mix, until its in-peer has published many more versions."""
    outs, peer = [], (comm.rank - 1) % comm.size
    with closing(Mailbox(comm, 1)) as mailbox:
        shown = mailbox.shared_view((comm.rank - 1) % comm.size) is not None

    def slow(mine: torch.Tensor, messages: list[np.ndarray], weights: list[float], out: torch.Tensor) -> None:
        average(mine, messages, weights, out)
        if comm.rank == 0 and not outs:
            signs.give("mixes")
            signs.wait("has gone on", [peer])
            if shown:
                out[:] = torch.nan  # as if torn
        outs.append(out.clone())

    monkeypatch.setattr("gala_mpi.exchange.gossip.average", slow)

    def keep_pace(k: int) -> float:
        """The in-peer has published something when rank 0 begins, and stays there until rank 0 mixes it (or never will)."""
        if comm.rank == comm.size - 1 > 0:
            if k == 5:
                signs.give("has published")
                signs.wait("mixes", [0])
            elif k == 30:
                signs.give("has gone on")
        elif comm.rank == 0 and comm.size > 1:
            if k == 1:
                signs.wait("has published", [peer])
            elif k == 100:
                signs.give("mixes")
                signs.wait("has gone on", [peer])
        return 0.01

    trace = run(comm, gossip("ring"), 100, gradient=bowl(comm.rank), pause=keep_pace)
    if comm.rank == 0 and comm.size > 1:
        mixes = [mix for mixes in trace.mixes for mix in mixes]
        # A copy of its own is rewritten by nobody. (Over a network none need have come in so short a time.)
        assert len(outs) == len(mixes) + shown
        if shown:  # read where it lay, and mixed once more
            assert np.isfinite(trace.parameters).all()
            assert mixes[0].version > 10


@pytest.mark.parametrize("config", named([FREE[0], FREE[3], SERVER]))
def test_a_sleeping_agent_delays_nobody(comm, config, signs):
    """Rank 0 sleeps outside MPI until the others have done five more updates; whoever waited for it would wait for ever."""
    if comm.size > 1 and config.exchange == "server" and reach(comm) is REMOTE:
        pytest.skip("a step goes to rank 0's memory, which nobody serves while it sleeps")

    def sleep(k: int) -> float:
        if k == 5:
            signs.give("update 5")
            signs.wait(*(("is done", signs.others()) if comm.rank == 0 else ("update 5", [0])))
        return 0.01

    def done(k: int) -> Order:
        if k == 10 and comm.rank:
            signs.give("is done")
        return Order()

    assert len(run(comm, config, 10, pause=sleep, wish=done).orders) == 10


@pytest.mark.parametrize("staleness", [0, 2])
def test_who_waits_for_long_says_for_whom(comm, staleness, monkeypatch, capsys):
    monkeypatch.setattr("gala_mpi.mpi.roll.SECONDS_BETWEEN_WARNINGS", 0.3)
    monkeypatch.setattr("gala_mpi.mpi.roll.SECONDS_BETWEEN_LOOKS", 0.1)
    Roll.of(comm).hosts = comm.allgather(MPI.Get_processor_name())
    # 40 updates: with bound 2, the five messages that rank 0 has sent by then last for 15 at most
    run(comm, gossip("ring", staleness), 40, pause=lambda k: 5.0 if comm.rank == 0 and k == 6 else 0.0)
    said = capsys.readouterr().err
    if comm.size > 1 and comm.rank == 1:  # who reads rank 0
        host = MPI.Get_processor_name()
        waits = rf"rank 1 on {host} at update \d+ has waited \d+ s for rank 0 on {host}, seen at update [0-6]\n"
        assert re.search(waits, said), said


@pytest.mark.parametrize("config", named([*FREE, *BOUNDED]))
def test_agents_that_resume_at_different_updates_mix_at_once(comm, config):
    """Rank r goes on from update 100 − 10 r: its peers' messages are new although their versions may be lower.

    Abreast, everybody's first message has been published before anybody's third update. A network needs some more.
    """
    updates = 12 if reach(comm) is DIRECT else 60
    trace = run(comm, config, updates, pause=abreast(comm), version=100 - 10 * comm.rank)
    for mixes in trace.mixes:
        assert all(100 - 10 * peer < version <= 100 - 10 * peer + updates for peer, version, _ in mixes)
    if comm.size > 1:
        assert any(trace.mixes[:3] if reach(comm) is DIRECT else trace.mixes)


def reach(comm: MPI.Intracomm) -> Reach:
    with closing(Progress()) as progress:
        return probe(comm, progress)


# Numbers that are not finite


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_allreduce_leaves_out_gradients_that_are_not_finite(comm, number):
    """And those of all ranks have no mean."""
    if comm.size == 1:
        pytest.skip("one rank alone shares with nobody")
    with closing(build_exchange(ALLREDUCE, comm, LENGTH)) as exchange:
        exchange.start(0, torch.zeros(LENGTH))
        for whole in (comm.size, comm.size - 1, 0):  # so many ranks, the first ones, have a gradient
            gradient = torch.full((LENGTH,), float(comm.rank))
            if comm.rank >= whole:
                gradient[7] = number
            assert exchange.gradient(gradient) == (comm.rank < whole)
            expected = sum(range(whole)) / whole if whole else np.nan
            np.testing.assert_allclose(gradient, np.full(LENGTH, expected), rtol=1e-6)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("staleness", [None, 2, 0])
def test_a_message_that_is_not_finite_is_refused_and_its_sender_named(comm, staleness, number, capsys):
    """Version 3 of rank 0 breaks on its way: in its window. Then rank 0's own parameters are as they were."""
    if comm.size == 1:
        pytest.skip("one rank alone shares with nobody")
    x, mixed = torch.full((LENGTH,), float(comm.rank)), []
    with closing(build_exchange(gossip("complete", staleness), comm, LENGTH)) as exchange:
        exchange.start(0, x)
        for k in range(1, 7):
            comm.Barrier()
            before, room = x.clone(), exchange.room()
            room.copy_(x)
            if comm.rank == 0 and k == 3:
                room[LENGTH // 2] = number
            exchange.parameters(x)
            if comm.rank == 0 and k == 3:
                x.copy_(before)
            assert torch.isfinite(x).all()
            counters = exchange.counters()
            mixed += [(mix.peer, mix.version) for mix in counters.mixes]
            comm.Barrier()  # so that each has read before the next is written
    if comm.rank:
        assert (0, 3) not in mixed and (mixed or staleness is None)
        said = capsys.readouterr().err
        assert (counters.corrupt > 0) == ("is not finite" in said)
        if staleness == 0:
            assert counters.corrupt == 1 and (0, 4) in mixed
            assert f"rank {comm.rank} at update 3 does not mix version 3 of rank 0: it is not" in said
