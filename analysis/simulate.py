"""How fast would it be, and how far would agents drift apart, on more ranks than you have?

    python analysis/simulate.py runs/check                              64 to 4,096 ranks, from these runs' update times
    python analysis/simulate.py runs/check --ranks 32 128 --cores 64 --latency 2e-6 --bandwidth 12e9
    python analysis/simulate.py runs/check --validate                   the runs beside what the model says of them

A discrete-event model of n agents. Measured, in runs of one game and setting: the processor time of an update (its
distribution, from the gossip run with the fewest ranks and no straggler) and of an all-reduce (from such a run of A2C: the
wait of the last to come, or what an update costs more than under gossip, whichever is less; without one A2C is left out).
Assumed: the rest, below.

The model:

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
* age: the reader's update minus the version mixed; negative where the sender is ahead.
* consensus distance D: (Σ ‖x_i - x̄‖² / n)^½ at the end, in steps. Agents' steps are independent random directions of
  length 1 in 16 dimensions, mixed with equal weights as parameters are. On large rings it still grows then.
* error of a validation: predicted over measured, minus 1.

Not in the model: contention inside the network, and caches and memory bandwidth that more ranks share than were measured.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from groups import grouped
from runs import METHODS, Run, RunError
from script import COLOURS, MARKERS, Answer, Options, Table, legend, look, main, panels

DIMENSIONS = 16
MOST_COMPLETE = 128  # ranks that all read all
Message = tuple[float, int, np.ndarray]  # when it is there, version, vector
PARTS = (("act", "simulate"), ("learn", "optimise"))  # of an update: the rollout, and what comes after it
START = 5  # updates of a measured run that are not typical


@dataclass(frozen=True)
class Simulate(Options):
    """What would more ranks do?"""

    ranks: tuple[int, ...] = (64, 256, 1024, 4096)
    """How many agents to simulate."""
    topologies: tuple[str, ...] = ("ring", "exponential", "one-peer-exponential")
    """Graphs to simulate: these and complete (up to 128 ranks)."""
    cores: int = 64
    """Cores of a node."""
    ranks_per_node: int = 64
    """Ranks of a node."""
    latency: float = 2e-6
    """Seconds until a message between nodes begins to come."""
    bandwidth: float = 12.5e9
    """Bytes a second into a node; 12.5e9 is 100 Gbit/s."""
    bytes: int = 3_500_000
    """Length of a message; network gala has 3.5 MB."""
    updates: int = 150
    """Simulated updates of an agent; rates and ages are taken from the last two thirds of the time."""
    straggler: float = 0.0
    """Rank 0 computes so many seconds longer at every update."""
    mtbf_hours: float = math.inf
    """Mean time between failures of a node."""
    restart_seconds: float = 60.0
    """Until a failed node, or all of A2C, goes on."""
    checkpoint_seconds: float = 300.0
    """Between A2C's checkpoints."""
    validate: bool = False
    """Predict the runs that are given, on a node of --cores cores, and say how far off that is."""
    seed: int = 0
    """Of the draws."""


@dataclass(frozen=True)
class Case:
    """One thing to simulate; slow is who is slowed down, by delay seconds an update."""

    exchange: str
    topology: str
    ranks: int
    ranks_per_node: int
    slow: int
    delay: float
    world: Simulate

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.ranks_per_node)

    @property
    def sharing(self) -> float:
        """Wall time of a second of processor time."""
        return max(1.0, min(self.ranks, self.ranks_per_node) / self.world.cores)

    def failures(self, random: np.random.Generator, nodes: int = 1) -> Iterator[float]:
        """When one of so many nodes fails, in order."""
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
        ages: of the messages mixed, updates.
        skipped: share of the updates without a mix.
        distance: consensus distance, in steps.
    """

    rate: float
    ages: np.ndarray
    skipped: float
    distance: float


def simulate(case: Case, measured: Measured) -> Outcome:
    return (allreduce if case.exchange == "allreduce" else gossip)(case, measured)


def offsets(topology: str, n: int) -> list[tuple[int, ...]]:
    """For each round, whom rank r reads: r - offset (mod n)."""
    powers = [1 << i for i in range((n - 1).bit_length())]
    named = {
        "ring": [(1,)],
        "exponential": [tuple(powers)],
        "one-peer-exponential": [(power,) for power in powers],
        "complete": [tuple(range(1, n))],
    }
    if topology not in named:
        raise RunError(f"--topologies {topology}: one of {', '.join(named)} is expected")
    return named[topology] if n > 1 else [()]


def gossip(case: Case, measured: Measured) -> Outcome:
    """Every agent at its own pace; one event an update of an agent."""
    n, world = case.ranks, case.world
    random = np.random.default_rng(world.seed)
    draws = _forever(lambda: case.sharing * (random.choice(measured.work, 65_536) + measured.exchange))
    steps = _forever(lambda: _unit(random.standard_normal((65_536, DIMENSIONS))))
    crashes = [case.failures(random) for _ in range(case.nodes)]
    crash = [next(times) for times in crashes]
    rounds = offsets(case.topology, n)
    transfer = world.latency + world.bytes * min(case.ranks_per_node, n) * max(map(len, rounds)) / world.bandwidth
    horizon = world.updates * case.sharing * (measured.work.mean() + measured.exchange)

    def duration(rank: int) -> float:
        return next(draws) + (case.delay if rank == case.slow else 0.0)

    def node_of(rank: int) -> int:
        return rank // case.ranks_per_node

    def in_peers(rank: int, update: int) -> list[int]:
        return [(rank - offset) % n for offset in rounds[update % len(rounds)]]

    def arrived(rank: int, peer: int, now: float) -> Message | None:
        """The message of `peer` that `rank` can mix now, if it is newer than the last."""
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
    ages: list[int] = []
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
        peers = in_peers(rank, version[rank])
        messages = [arrived(rank, peer, now) for peer in peers]
        if all(messages):
            for peer, (_, theirs, vector) in zip(peers, messages):
                x[rank] += vector
                mixed[rank][peer] = theirs
                coming[rank].pop(peer, None)
            x[rank] /= 1 + len(peers)
        for peer in in_peers(rank, version[rank] + 1):
            if node_of(peer) != node and peer not in coming[rank]:
                coming[rank][peer] = (now + transfer, version[peer], published[peer].copy())
        if now > horizon / 3:
            done += 1
            missed += not all(messages)
            if all(messages):
                ages += [version[rank] - theirs for _, theirs, _ in messages]
        heapq.heappush(events, (now + duration(rank), rank, now))
    distance = np.sqrt(((x - x.mean(axis=0)) ** 2).sum() / n)
    return Outcome(done / (2 / 3 * horizon), np.array(ages), missed / max(1, done), float(distance))


def allreduce(case: Case, measured: Measured) -> Outcome:
    """Everybody in step: an update takes as long as the slowest of its agents."""
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
    """When each of the ranks of a node is done, if those that compute share its cores evenly and those that are done leave."""
    order = np.argsort(work)
    computing = len(work) - np.arange(len(work))
    ends = np.empty(len(work))
    ends[order] = np.cumsum(np.diff(work[order], prepend=0) * np.maximum(1, computing / cores))
    return ends


def slowed(work: np.ndarray, cores: int, slow: int, delay: float, rollout: float) -> float:
    """When the last of a node's ranks is done, if one computes `delay` seconds of wall time more after its rollout."""
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


# What was measured.


def slowness(run: Run) -> tuple[int, float]:
    """Who is slowed down, and by how many seconds an update."""
    if not (text := run.config.get("slow_rank")):
        return -1, 0.0
    rank, _, time = text.partition(":")
    return int(rank), float(time[:-2]) / 1000 if time.endswith("ms") else float(time[:-1])


def calibrate(found: list[Run]) -> tuple[Measured, list[str]]:
    """The smallest runs without stragglers give the times; and what to say about it. Raises RunError."""
    alike = {(run.config["env"], run.config["num_envs"], run.config["rollout_length"], run.config["network"]) for run in found}
    if len(alike) > 1:
        raise RunError(
            f"{found[0].path}: runs of one game, network and number of simulators are expected; these differ: {alike}"
        )
    plain = sorted((run for run in found if slowness(run)[0] < 0 and run.agents > 1), key=lambda run: run.agents)
    asynchronous = [run for run in plain if run.config["exchange"] in ("gossip", "none") and timed(run)]
    if not asynchronous:
        raise RunError(
            f"{found[0].path}: a run of --exchange gossip (2 ranks, no --slow-rank) is expected, to measure an update"
        )
    tables = [table[START:] for table in map(asynchronous[0].updates, range(asynchronous[0].agents))]
    cpu = np.concatenate([table["cpu"].astype(float) for table in tables])
    if not len(cpu) or not np.isfinite(cpu).all():
        raise RunError(
            f"{asynchronous[0].path}: no processor times are there: too few updates, or recorded by an older version"
        )
    exchange = float(np.quantile(np.concatenate([table["exchange"] for table in tables]), 0.1))  # undisturbed
    notes = [f"update times from {asynchronous[0].path}: {1000 * cpu.mean():.1f} ms of processor time"]
    reduce = np.nan
    if synchronous := [run for run in plain if run.config["exchange"] == "allreduce" and timed(run)]:
        rows = [table["exchange"][START:] for table in map(synchronous[0].updates, range(synchronous[0].agents))]
        common = min(map(len, rows))
        last = float(np.median(np.min([row[:common] for row in rows], axis=0)))  # the last to come waits for nobody
        busy = np.mean([run["cpu"][START:].mean() for run in map(synchronous[0].updates, range(synchronous[0].agents))])
        reduce = max(0.0, min(last, float(busy - cpu.mean() + exchange)))  # each is too much where other programs run
        notes.append(f"all-reduce from {synchronous[0].path}: {1000 * reduce:.1f} ms")
    else:
        notes.append("A2C is left out: there is no run of it to measure an all-reduce")
    rollout, rest = (sum(float(t[name].mean()) for t in tables for name in names) for names in PARTS)
    return Measured(np.maximum(cpu - exchange, 0), exchange, reduce, rollout / max(rollout + rest, 1e-9)), notes


def answer(found: list[Run], options: Simulate) -> Answer:
    measured, notes = calibrate(found)
    said = validation(found, options, measured) if options.validate else prediction(options, measured)
    return Answer(said.table, said.figure, said.alt, said.points, [*notes, *said.notes])


# Beyond the machine.


def prediction(options: Simulate, measured: Measured) -> Answer:
    table = Table(("method", "ranks", "updates/s", "efficiency (%)", "median age", "95% under", "skipped (%)", "D (steps)"))
    slow = (0, options.straggler) if options.straggler else (-1, 0.0)
    methods = [("gossip", topology) for topology in options.topologies]
    methods += [("allreduce", "")] * bool(np.isfinite(measured.reduce))
    lines: dict[str, list[tuple[int, Outcome]]] = {}
    for exchange, topology in methods:
        for n in options.ranks:
            if topology == "complete" and n > MOST_COMPLETE:
                continue
            outcome = simulate(Case(exchange, topology, n, options.ranks_per_node, *slow, options), measured)
            name = f"{METHODS[exchange]} {topology}".strip()
            lines.setdefault(name, []).append((n, outcome))
            ideal = n / (measured.work.mean() * max(1.0, options.ranks_per_node / options.cores))
            ages = np.quantile(outcome.ages, [0.5, 0.95]) if len(outcome.ages) else (np.nan, np.nan)
            quality = (100 * outcome.rate / ideal, *ages, 100 * outcome.skipped, outcome.distance)
            table.rows.append((name, n, outcome.rate, *quality))
    figure, (top, bottom) = panels(2)
    for number, (name, points) in enumerate(lines.items()):
        ranks = [n for n, _ in points]
        style = {"marker": MARKERS[number % len(MARKERS)], **look(number)}
        top.plot(ranks, [outcome.rate for _, outcome in points], label=name, **style)
        bottom.plot(ranks, [outcome.distance for _, outcome in points], **style)
    for ax in (top, bottom):
        ax.set_xscale("log", base=2)
        ax.set_xticks(options.ranks, [f"{n:,}" for n in options.ranks])
        ax.minorticks_off()
        ax.set_xlabel("ranks")
    top.set_yscale("log")
    top.set(ylabel="updates/s (all agents)")
    bottom.set(ylabel=f"consensus distance after\n{options.updates} updates (steps)", ylim=(0, None))
    legend(figure, [top])
    most = max(options.ranks)
    said = "; ".join(f"{name} {points[-1][1].rate:,.0f}" for name, points in lines.items() if points[-1][0] == most)
    return Answer(table, figure, f"Predicted updates per second on {most:,} ranks: {said}. Below, consensus distance.", table)


# Against real runs.


def validation(found: list[Run], options: Simulate, measured: Measured) -> Answer:
    table = Table(
        ("run", "method", "ranks", "straggler (ms)", "measured (updates/s)", "predicted", "error (%)", "age", "predicted ")
    )
    notes: list[str] = []
    for group in grouped(found, "method,agents"):
        for run in group.runs:
            exchange = run.config["exchange"]
            if exchange not in ("gossip", "allreduce") or (exchange == "allreduce" and not np.isfinite(measured.reduce)):
                continue
            if not timed(run):
                notes.append(f"{run.path}: too few updates; left out")
                continue
            hosts = run.starts[-1].get("hosts") or ["?"] * run.agents
            slow, delay = slowness(run)
            case = Case(exchange, run.config["topology"], run.agents, hosts.count(hosts[0]), slow, delay, options)
            outcome, real = simulate(case, measured), rate(run)
            mixes = [run.mixes(rank) for rank in range(run.agents)]
            ages = np.concatenate([table["update"] - table["version"] for table in mixes])
            middles = [float(np.median(a)) if len(a) else np.nan for a in (ages, outcome.ages)]
            error = 100 * (outcome.rate / real - 1)
            name = (str(run.path), run.settings()["method"], run.agents, 1000 * delay)
            table.rows.append((*name, real, outcome.rate, error, *middles))
    if not table.rows:
        raise RunError(f"{found[0].path}: runs of --exchange gossip or allreduce are expected, of some updates")
    figure, [ax] = panels(1, height=4.5)
    methods = list(dict.fromkeys(row[1] for row in table.rows))
    for number, method in enumerate(methods):
        mine = [row for row in table.rows if row[1] == method]
        marker = MARKERS[number % len(MARKERS)]
        ax.plot([r[4] for r in mine], [r[5] for r in mine], marker, color=COLOURS[number % len(COLOURS)], label=method)
        for row in mine:
            words = f"{row[2]} ranks" + (", straggler" if row[3] else "")
            ax.annotate(words, (row[4], row[5]), (6, -3), textcoords="offset points", fontsize=8)
    ends = np.array([min(min(r[4:6]) for r in table.rows) * 0.8, max(max(r[4:6]) for r in table.rows) * 1.25])
    ax.plot(ends, ends, color="black", linewidth=1, label="predicted = measured")
    ax.fill_between(ends, 0.9 * ends, 1.1 * ends, color="black", alpha=0.1, linewidth=0, label="± 10%")
    ax.set(xscale="log", yscale="log", xlabel="measured (updates/s, all agents)", ylabel="predicted (updates/s, all agents)")
    legend(figure, [ax])
    worst = max(abs(row[6]) for row in table.rows)
    alt = f"Predicted against measured updates per second of {len(table.rows)} runs; the largest error is {worst:.0f}%."
    return Answer(table, figure, alt, table, [*notes, f"largest error: {worst:.1f}%"])


def timed(run: Run) -> bool:
    """Whether all agents have updates beyond the start."""
    return all(len(run.updates(rank)) > START + 1 for rank in range(run.agents))


def rate(run: Run) -> float:
    """Updates a second of all agents, the start left out."""
    tables = [table[START:] for table in map(run.updates, range(run.agents))]
    return float(sum((len(t) - 1) / (3600 * np.ptp(t["hours"])) for t in tables if len(t) > 1))


if __name__ == "__main__":
    main(answer, Simulate, __doc__)
