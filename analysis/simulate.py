"""How fast would it be, and how far would agents drift apart, on more ranks than you have?

    python analysis/simulate.py runs/check                              64 to 4,096 ranks, from these runs' update times
    python analysis/simulate.py runs/check --ranks 32 128 --cores 64 --latency 2e-6 --bandwidth 12e9
    python analysis/simulate.py runs/check --validate                   the runs beside what the model says of them

A discrete-event model of n agents. Measured, in runs of one game and setting: the processor time of an update (its
distribution, from the gossip run with the fewest ranks and no straggler) and of an all-reduce (from such a run of A2C: the
wait of the last to come, or what an update costs more than under gossip, whichever is less; without one A2C is left out).
Assumed: the rest, below.

Of a run that was resumed with other settings, the newest stretch counts.

* efficiency: updates/s over those of as many agents that compute and do nothing else, ranks / (processor time of an update
  without its exchange · ranks a core, where these are more than 1). 100% is perfect.
* error of a validation: predicted over measured, minus 1. Measured are updates a second of all agents, from when each has done
  5 until the first one ends.

The model (`model.py`):
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

import checkout  # noqa: F401
import model
from gala_mpi import topology
from gala_mpi.config import Config
from gala_mpi.exchange import EXCHANGES
from gala_mpi.run import Run, RunError
from groups import grouped, stretches
from model import Case, Cluster, Measured, Outcome, at_least, simulate
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
    """Graphs to simulate: these, complete (up to 128 ranks), torus, base and base:K."""
    ranks_per_node: int = 64
    """Ranks of a node."""
    straggler: float = 0.0
    """Rank 0 computes so many seconds longer at every update."""
    validate: bool = False
    """Predict the runs that are given, on a node of --cores cores, and say how far off that is."""


# What was measured.


def calibrate(found: list[Run]) -> tuple[Measured, list[str]]:
    """Take the times from the smallest runs without stragglers; return them, and what to say about it. Raises RunError."""
    for name in ("env", "num_envs", "rollout_length", "network"):
        if len(values := {str(run.settings()[name]) for run in found}) > 1:
            raise RunError(f"{found[0].path}: runs of one {name} are expected; these have {', '.join(sorted(values))}")
    plain = [run for run in found if run.settings()["slow_rank"] is None and run.agents > 1]
    plain = [run for run in plain if run.settings().get("mix_steps") is None]  # else most updates play nothing
    plain.sort(key=lambda run: run.agents)
    asynchronous = [run for run in plain if run.config["exchange"] in ("gossip", "none") and timed(run)]
    if not asynchronous:
        raise RunError(
            f"{found[0].path}: a run of --exchange gossip (2 ranks, no --slow-rank or --mix-steps, more than {START + 1} "
            "updates of each) is expected, to measure an update"
        )
    tables = [table[START:] for table in map(asynchronous[0].updates, range(asynchronous[0].agents))]
    cpu, exchanges = (np.concatenate([table[name].astype(float) for table in tables]) for name in ("cpu", "exchange"))
    exchange = float(np.nanquantile(exchanges, 0.1)) if np.isfinite(exchanges).any() else 0.0  # undisturbed
    cpu = cpu[np.isfinite(cpu)]
    if not len(cpu) or cpu.mean() <= exchange:
        raise RunError(
            f"{asynchronous[0].path}: no processor times beside the exchange are there; those of a newer version are expected"
        )
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
    check(options)
    newest = [stretches(run)[-1] for run in found]
    measured, notes = calibrate(newest)
    said = validation(newest, options, measured) if options.validate else prediction(options, measured)
    return Answer(said.table, said.figure, said.alt, said.points, [*notes, *said.notes], said.sentence)


def check(options: Simulate) -> None:
    """Raise RunError where a number makes no sense."""
    options.check()
    at_least("ranks_per_node", options.ranks_per_node, 1)
    at_least("straggler", options.straggler, 0)
    for ranks in options.ranks:
        at_least("ranks", ranks, 1)
    if not options.ranks or not options.topologies:
        raise RunError("--ranks, --topologies: one or more of each is expected")
    for graph in options.topologies:
        if graph not in topology.BUILT_IN and not topology.BASE.fullmatch(graph):
            raise RunError(f"--topologies {graph}: one of {', '.join(topology.BUILT_IN)}, base:K is expected")


# Beyond the machine.


def prediction(options: Simulate, measured: Measured) -> Answer:
    table = Table(("method", "ranks", "updates/s", "efficiency (%)", "median lag", "95% under", "skipped (%)", "D (steps)"))
    slow = (0, options.straggler) if options.straggler else (-1, 0.0)
    methods = {f"{EXCHANGES['gossip'].method} {graph}": graph for graph in options.topologies}
    methods |= {EXCHANGES["allreduce"].method: ""} if np.isfinite(measured.reduce) else {}
    lines: dict[str, list[tuple[int, Outcome]]] = {}
    for name, graph in methods.items():
        for n in options.ranks:
            if graph == "complete" and n > MOST_COMPLETE:
                continue
            built = topology.build(topology.Graph(graph), n) if graph else None
            case = Case(built, n, options.ranks_per_node, *slow, options)
            outcome = simulate(case, measured)
            lines.setdefault(name, []).append((n, outcome))
            ideal = n / (measured.work.mean() * case.sharing)
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
            if reason := beyond_the_model(run, measured):
                notes.append(f"{run.path}: {reason}; left out")
                continue
            config, hosts = settings(run), run.metadata.get("hosts") or ["?"] * run.agents
            slow, delay = config.slowness()
            graph = topology.build(config.topology, run.agents) if run.config["exchange"] == "gossip" else None
            case = Case(graph, run.agents, hosts.count(hosts[0]), slow, delay, options)
            outcome, real = simulate(case, measured), rate(run)
            mixes = [run.mixes(rank) for rank in range(run.agents)]
            lags = np.concatenate([table["update"] - table["version"] for table in mixes])
            middles = [float(np.median(a)) if len(a) else np.nan for a in (lags, outcome.lags)]
            error = 100 * (outcome.rate / real - 1)
            name = (str(run.path), run.settings()["method"], run.agents, 1000 * delay)
            table.rows.append((*name, real, outcome.rate, error, *middles))
    if not table.rows:
        raise RunError("; ".join(notes))
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


def beyond_the_model(run: Run, measured: Measured) -> str:
    """Return why a run is not predicted, in words; empty: it is."""
    exchange = run.config["exchange"]
    if exchange not in ("gossip", "allreduce") or run.agents < 2:
        return "the model is of 2 agents or more of --exchange gossip or allreduce"
    if exchange == "allreduce" and not np.isfinite(measured.reduce):
        return "no all-reduce could be measured"
    if not timed(run):
        return "too few updates"
    return "" if np.isfinite(rate(run)) else "its agents did not train at the same time"


def settings(run: Run) -> Config:
    """Return a run's settings. Raises RunError where another version wrote them."""
    try:
        return Config.from_json(json.dumps(run.config))
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(f"{run.path}: its settings are those of another version ({error})") from None


def timed(run: Run) -> bool:
    """Return whether all agents have updates beyond the start."""
    return all(len(run.updates(rank)) > START + 1 for rank in range(run.agents))


def rate(run: Run) -> float:
    """Return the updates a second of all agents, from when each has done START until the first one ends.

    NaN: they did not all train at the same time.
    """
    tables = [table[START:] for table in map(run.updates, range(run.agents))]
    ends = [max(table["hours"][0] for table in tables), min(table["hours"][-1] for table in tables)]
    done = sum(float(np.ptp(np.interp(ends, table["hours"], table["update"]))) for table in tables)
    return done / (3600 * (ends[1] - ends[0])) if ends[1] > ends[0] else np.nan


if __name__ == "__main__":
    main(answer, Simulate, __doc__ + model.__doc__.partition("\n")[2])
