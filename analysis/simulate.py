"""How fast would it be, and how far would agents drift apart, on more ranks than you have?

    python analysis/simulate.py runs/check                              64 to 4,096 ranks, from these runs' update times
    python analysis/simulate.py runs/check --ranks 32 128 --cores 64 --latency 2e-6 --bandwidth 12e9
    python analysis/simulate.py runs/check --validate                   the runs beside what the model says of them

A discrete-event model of n agents. Measured, in runs of one game and setting: the processor time of an update (its
distribution, from the gossip run with the fewest ranks and no straggler) and of an all-reduce (from such a run of A2C: the
wait of the last to come, or what an update costs more than under gossip, whichever is less; without one A2C is left out).
Assumed: the rest, below.

The error of a validation is predicted over measured, minus 1. The model (`model.py`):
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import checkout  # noqa: F401
import model
from gala_mpi import topology
from gala_mpi.exchange import EXCHANGES
from gala_mpi.run import Run, RunError
from gala_mpi.run.reader import read_config
from groups import grouped
from model import Case, Cluster, Measured, Outcome, simulate
from script import COLOURS, Answer, Options, Table, legend, line_style, main, marker, panels

MOST_COMPLETE = 128  # ranks that all read all
PARTS = (("act", "simulate"), ("learn", "optimise"))  # of an update: the rollout, and what comes after it
START = 5  # updates of a measured run that are not typical


@dataclass(frozen=True)
class Simulate(Cluster, Options):
    """What would more ranks do?"""

    ranks: tuple[int, ...] = (64, 256, 1024, 4096)
    """How many agents to simulate."""
    topologies: tuple[str, ...] = ("ring", "exponential", "one-peer-exponential")
    """Graphs to simulate: these, complete (up to 128 ranks) and torus."""
    ranks_per_node: int = 64
    """Ranks of a node."""
    straggler: float = 0.0
    """Rank 0 computes so many seconds longer at every update."""
    validate: bool = False
    """Predict the runs that are given, on a node of --cores cores, and say how far off that is."""


# What was measured.


def calibrate(found: list[Run]) -> tuple[Measured, list[str]]:
    """Take the times from the smallest runs without stragglers; return them, and what to say about it. Raises RunError."""
    alike = {(run.config["env"], run.config["num_envs"], run.config["rollout_length"], run.config["network"]) for run in found}
    if len(alike) > 1:
        raise RunError(
            f"{found[0].path}: runs of one game, network and number of environments are expected; these differ: {alike}"
        )
    plain = sorted((run for run in found if run.config.get("slow_rank") is None and run.agents > 1), key=lambda run: run.agents)
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
    return Answer(said.table, said.figure, said.alt, said.points, [*notes, *said.notes], said.sentence)


# Beyond the machine.


def prediction(options: Simulate, measured: Measured) -> Answer:
    table = Table(("method", "ranks", "updates/s", "efficiency (%)", "median lag", "95% under", "skipped (%)", "D (steps)"))
    slow = (0, options.straggler) if options.straggler else (-1, 0.0)
    for graph in options.topologies:
        if graph not in topology.BUILT_IN:
            raise RunError(f"--topologies {graph}: one of {', '.join(topology.BUILT_IN)} is expected")
    methods = {f"{EXCHANGES['gossip'].method} {graph}": graph for graph in options.topologies}
    methods |= {EXCHANGES["allreduce"].method: ""} if np.isfinite(measured.reduce) else {}
    lines: dict[str, list[tuple[int, Outcome]]] = {}
    for name, graph in methods.items():
        for n in options.ranks:
            if graph == "complete" and n > MOST_COMPLETE:
                continue
            built = topology.build(topology.Graph(graph), n) if graph else None
            outcome = simulate(Case(built, n, options.ranks_per_node, *slow, options), measured)
            lines.setdefault(name, []).append((n, outcome))
            ideal = n / (measured.work.mean() * max(1.0, options.ranks_per_node / options.cores))
            lags = np.quantile(outcome.lags, [0.5, 0.95]) if len(outcome.lags) else (np.nan, np.nan)
            quality = (100 * outcome.rate / ideal, *lags, 100 * outcome.skipped, outcome.distance)
            table.rows.append((name, n, outcome.rate, *quality))
    figure, (top, bottom) = panels(2)
    for number, (name, points) in enumerate(lines.items()):
        ranks = [n for n, _ in points]
        style = {"marker": marker(number), **line_style(number)}
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
    alt = f"Predicted updates per second on {most:,} ranks: {said}. Below, consensus distance."
    fastest = max(table.rows, key=lambda row: (row[1], row[2]))
    sentence = f"On {fastest[1]:,} ranks {fastest[0]} is predicted to be the fastest, with {fastest[2]:,.0f} updates/s."
    return Answer(table, figure, alt, table, sentence=sentence)


# Against real runs.


def validation(found: list[Run], options: Simulate, measured: Measured) -> Answer:
    table = Table(
        ("run", "method", "ranks", "straggler (ms)", "measured (updates/s)", "predicted", "error (%)", "lag", "predicted ")
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
            config = read_config(run.path)
            slow, delay = config.slowness()
            graph = topology.build(config.topology, run.agents) if exchange == "gossip" else None
            case = Case(graph, run.agents, hosts.count(hosts[0]), slow, delay, options)
            outcome, real = simulate(case, measured), rate(run)
            mixes = [run.mixes(rank) for rank in range(run.agents)]
            lags = np.concatenate([table["update"] - table["version"] for table in mixes])
            middles = [float(np.median(a)) if len(a) else np.nan for a in (lags, outcome.lags)]
            error = 100 * (outcome.rate / real - 1)
            name = (str(run.path), run.settings()["method"], run.agents, 1000 * delay)
            table.rows.append((*name, real, outcome.rate, error, *middles))
    if not table.rows:
        raise RunError(f"{found[0].path}: runs of --exchange gossip or allreduce are expected, of some updates")
    figure, [ax] = panels(1, height=4.5)
    methods = list(dict.fromkeys(row[1] for row in table.rows))
    for number, method in enumerate(methods):
        mine = [row for row in table.rows if row[1] == method]
        ax.plot([r[4] for r in mine], [r[5] for r in mine], marker(number), color=COLOURS[number % len(COLOURS)], label=method)
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
    sentence = f"The largest error of {len(table.rows)} predictions is {worst:.1f}%."
    return Answer(table, figure, alt, table, [*notes, f"largest error: {worst:.1f}%"], sentence)


def timed(run: Run) -> bool:
    """Return whether all agents have updates beyond the start."""
    return all(len(run.updates(rank)) > START + 1 for rank in range(run.agents))


def rate(run: Run) -> float:
    """Return the updates a second of all agents, the start left out."""
    tables = [table[START:] for table in map(run.updates, range(run.agents))]
    return float(sum((len(t) - 1) / (3600 * np.ptp(t["hours"])) for t in tables if len(t) > 1))


if __name__ == "__main__":
    main(answer, Simulate, __doc__ + model.__doc__.partition("\n")[2])
