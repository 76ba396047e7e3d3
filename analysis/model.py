"""A discrete-event model of n agents that train.

* a node's cores are shared evenly by those of its ranks that compute: all of them under gossip, those not done yet under A2C
  (who waits gives way). An update takes a draw from the measured processor times, longer by ranks / cores if that is above 1.
* gossip: after an update an agent publishes, then mixes if it has a newer message of every in-peer of its round. A message
  inside the node is the newest at that moment. One from another node was asked for when the last one had been mixed, and takes
  latency + bytes · (ranks of a node · in-peers) / bandwidth; until it has come the agent goes on.
* A2C: all wait for the last one; the all-reduce then takes its processor time on every rank, and between nodes
  2 log2(nodes) · latency + 2 (nodes - 1) / nodes · bytes / bandwidth more.
* a straggler computes so much longer at every update (wall time, between its rollout and its backward pass). A node that
  fails (exponential times with mean --mtbf-hours) goes on after --restart-seconds with its update begun anew; the others do
  without its messages meanwhile. A2C stops altogether, and goes back to its last checkpoint.
* lag of a message: the reader's update minus the version mixed. Positive: its sender is behind; negative: it is ahead.
* consensus distance D: (Σ ‖x_i - x̄‖² / n)^½ at the end, in steps. Agents' steps are independent random directions of
  length 1 in 16 dimensions, mixed with the graph's weights as parameters are. On large rings it still grows then.

Not in the model: contention inside the network, and caches and memory bandwidth that more ranks share than were measured.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

import checkout  # noqa: F401
from gala_mpi import topology
from gala_mpi.run import RunError

DIMENSIONS = 16
Message = tuple[float, int, np.ndarray]  # when it is there, version, vector


@dataclass(frozen=True)
class Cluster:
    """What agents run on, and for how long."""

    cores: int = 64
    """Cores of a node."""
    latency: float = 2e-6
    """Seconds until a message between nodes begins to come."""
    bandwidth: float = 12.5e9
    """Bytes a second into a node; 12.5e9 is 100 Gbit/s."""
    bytes: int = 3_500_000
    """Length of a message; network gala has 3.5 MB."""
    updates: int = 150
    """Simulated updates of an agent; rates and lags are taken from the last two thirds of the time."""
    mtbf_hours: float = math.inf
    """Mean time between failures of a node."""
    restart_seconds: float = 60.0
    """Until a failed node, or all of A2C, goes on."""
    checkpoint_seconds: float = 300.0
    """Between A2C's checkpoints."""
    seed: int = 0
    """Of the draws."""

    def check(self) -> None:
        """Raise RunError where a number makes no sense."""
        for name in ("cores", "updates"):
            at_least(name, getattr(self, name), 1)
        for name in ("latency", "bytes", "restart_seconds", "checkpoint_seconds", "seed"):
            at_least(name, getattr(self, name), 0)
        for name in ("bandwidth", "mtbf_hours"):
            if not getattr(self, name) > 0:
                raise RunError(f"{flag(name)} {getattr(self, name):g}: a number above 0 is expected")


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def at_least(name: str, value: float, least: float) -> None:
    """Raise RunError unless `least` ≤ value < ∞."""
    if not least <= value < math.inf:
        raise RunError(f"{flag(name)} {value:g}: a number of {least} or more is expected")


@dataclass(frozen=True)
class Case:
    """One thing to simulate.

    Attributes:
        graph: who reads whom; None: nobody, all wait for all (A2C).
        slow: the rank that is slowed down, by `delay` seconds an update; -1: nobody.
    """

    graph: topology.Topology | None
    ranks: int
    ranks_per_node: int
    slow: int
    delay: float
    world: Cluster

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.ranks_per_node)

    @property
    def sharing(self) -> float:
        """Seconds of wall time that a second of processor time takes."""
        return max(1.0, min(self.ranks, self.ranks_per_node) / self.world.cores)

    def failures(self, random: np.random.Generator, nodes: int = 1) -> Iterator[float]:
        """Yield the times (s) at which one of so many nodes fails, in order."""
        return itertools.accumulate(iter(lambda: random.exponential(3600 * self.world.mtbf_hours / nodes), None))


@dataclass(frozen=True)
class Measured:
    """What runs gave: processor seconds of updates without the exchange, of a gossip exchange, and of an all-reduce; and which
    share of an update is its rollout."""

    work: np.ndarray
    exchange: float
    reduce: float
    rollout: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What the model says.

    Attributes:
        rate: updates a second, all agents together.
        lags: of the messages mixed, in updates; int64 [messages].
        skipped: share of the updates without a mix.
        distance: consensus distance, in steps.
    """

    rate: float
    lags: np.ndarray
    skipped: float
    distance: float


def simulate(case: Case, measured: Measured) -> Outcome:
    """Let the agents of a case train."""
    return gossip(case, measured) if case.graph else allreduce(case, measured)


def gossip(case: Case, measured: Measured) -> Outcome:
    """Let every agent train at its own pace; one event an update of an agent."""
    n, world, graph = case.ranks, case.world, case.graph
    random = np.random.default_rng(world.seed)
    draws = _forever(lambda: case.sharing * (random.choice(measured.work, 65_536) + measured.exchange))
    steps = _forever(lambda: _unit(random.standard_normal((65_536, DIMENSIONS))))
    crashes = [case.failures(random) for _ in range(case.nodes)]
    crash = [next(times) for times in crashes]
    rounds = [[(graph.in_peers(rank, k), graph.weights(rank, k)) for rank in range(n)] for k in range(graph.period)]
    transfer = world.latency + world.bytes * min(case.ranks_per_node, n) * graph.degree / world.bandwidth
    horizon = world.updates * case.sharing * (measured.work.mean() + measured.exchange)

    def duration(rank: int) -> float:
        return next(draws) + (case.delay if rank == case.slow else 0.0)

    def node_of(rank: int) -> int:
        return rank // case.ranks_per_node

    def arrived(rank: int, peer: int, now: float) -> Message | None:
        """Return the message of `peer` that `rank` can mix now, if it is newer than the last."""
        here = node_of(peer) == node_of(rank)
        message = (now, version[peer], published[peer]) if here else coming[rank].get(peer)
        if message and message[0] <= now and message[1] <= mixed[rank].get(peer, 0):
            coming[rank].pop(peer, None)  # nothing new: ask again
            return None
        return message if message and message[0] <= now else None

    x = np.zeros((n, DIMENSIONS))
    published = np.zeros((n, DIMENSIONS))
    version = [0] * n
    mixed: list[dict[int, int]] = [{} for _ in range(n)]  # peer → version
    coming: list[dict[int, Message]] = [{} for _ in range(n)]  # by peer
    events = [(duration(rank), rank, 0.0) for rank in range(n)]
    heapq.heapify(events)
    lags: list[int] = []
    done = missed = 0
    while events[0][0] <= horizon:
        now, rank, began = heapq.heappop(events)
        node = node_of(rank)
        while crash[node] + world.restart_seconds < began:
            crash[node] = next(crashes[node])
        if began < crash[node] + world.restart_seconds and crash[node] <= now:
            up = crash[node] + world.restart_seconds
            heapq.heappush(events, (up + duration(rank), rank, up))
            continue
        version[rank] += 1
        published[rank] = x[rank] + next(steps)
        x[rank] = published[rank]
        peers, (own, *weights) = rounds[version[rank] % graph.period][rank]
        messages = [arrived(rank, peer, now) for peer in peers]
        if all(messages):
            x[rank] *= own
            for peer, weight, (_, theirs, vector) in zip(peers, weights, messages):
                x[rank] += weight * vector
                mixed[rank][peer] = theirs
                coming[rank].pop(peer, None)
        for peer in rounds[(version[rank] + 1) % graph.period][rank][0]:
            if node_of(peer) != node and peer not in coming[rank]:
                coming[rank][peer] = (now + transfer, version[peer], published[peer].copy())
        if now > horizon / 3:
            done += 1
            missed += not all(messages)
            if all(messages):
                lags += [version[rank] - theirs for _, theirs, _ in messages]
        heapq.heappush(events, (now + duration(rank), rank, now))
    distance = np.sqrt(((x - x.mean(axis=0)) ** 2).sum() / n)
    return Outcome(done / (2 / 3 * horizon), np.array(lags), missed / max(1, done), float(distance))


def allreduce(case: Case, measured: Measured) -> Outcome:
    """Let all agents train in step: an update takes as long as the slowest of them."""
    n, world = case.ranks, case.world
    random = np.random.default_rng(world.seed)
    network = 0.0
    if case.nodes > 1:
        network = 2 * math.log2(case.nodes) * world.latency + 2 * (case.nodes - 1) / case.nodes * world.bytes / world.bandwidth
    crashes = case.failures(random, case.nodes)
    crash, now, kept, saved, done = next(crashes), 0.0, 0, 0.0, 0
    horizon = world.updates * case.sharing * (measured.work.mean() + measured.reduce)
    while now < horizon:
        times = random.choice(measured.work, n)
        nodes = [times[i : i + case.ranks_per_node] for i in range(0, n, case.ranks_per_node)]
        last = max(shared(node, world.cores).max() for node in nodes)
        if case.slow >= 0:
            node, place = divmod(case.slow, case.ranks_per_node)
            last = max(last, slowed(nodes[node], world.cores, place, case.delay, measured.rollout))
        end = now + last + case.sharing * measured.reduce + network
        if end > crash:
            now, done = crash + world.restart_seconds, kept
            saved, crash = now, next(time for time in crashes if time > now)
            continue
        now, done = end, done + 1
        if now - saved > world.checkpoint_seconds:
            kept, saved = done, now
    return Outcome(n * done / now, np.zeros(0), 0.0, 0.0)


def shared(work: np.ndarray, cores: int) -> np.ndarray:
    """Return when each rank of a node is done, if those that compute share its cores evenly and those that are done leave.

    Args:
        work: processor time of every rank, s; float64 [ranks].
    """
    order = np.argsort(work)
    computing = len(work) - np.arange(len(work))
    ends = np.empty(len(work))
    ends[order] = np.cumsum(np.diff(work[order], prepend=0) * np.maximum(1, computing / cores))
    return ends


def slowed(work: np.ndarray, cores: int, slow: int, delay: float, rollout: float) -> float:
    """Return when the last of a node's ranks is done, if one computes `delay` seconds of wall time more after its rollout."""
    parts = [delay, (1 - rollout) * work[slow]]  # that the slow one has still before it
    left, now = work.copy(), 0.0
    left[slow] *= rollout
    while (computing := left > 0).any():
        speed = np.full(len(work), min(1.0, cores / computing.sum()))
        if len(parts) == 1:
            speed[slow] = 1.0
        step = (left[computing] / speed[computing]).min()
        now += step
        left = np.where(left - step * speed > 1e-9, left - step * speed, 0.0)
        while left[slow] == 0 and parts:
            left[slow] = parts.pop(0)
    return now


def _forever(block) -> Iterator:
    while True:
        yield from block()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
