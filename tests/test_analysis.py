"""The scripts of the analysis, on run directories that the project's own writers made, against plain loops."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from recorded import ANALYSIS, ROOT, STEPS, begin, cut, episode_rows, make, mix_rows, update_rows, write

import compare
import consensus
import gradients
import learning_curves
import references
import report
import robustness
import runs
import scores
import simulate
import staleness
import throughput
from gala_mpi import store, topology
from gala_mpi.config import A2CSettings
from groups import grouped, load, mixtures
from script import Options

SCRIPTS = {
    "learning_curves": learning_curves.Curves,
    "staleness": Options,
    "throughput": Options,
    "scores": scores.Scores,
    "compare": compare.Compare,
    "robustness": robustness.Robustness,
    "consensus": Options,
    "gradients": Options,
}


# Curves, by definition.


def slow_points(run_dir: Path, axis: str) -> list[tuple[float, float]]:
    """(x, score) of every episode of a run, read the plain way."""
    points = []
    with h5py.File(run_dir / "run.h5") as file:
        agents = file.attrs["agents"]
    for rank in range(agents):
        with h5py.File(run_dir / "metrics" / f"rank{rank:05d}.h5") as file:
            for row in file["episodes"][: file["rows/episodes"][()]]:
                points.append((row["hours"] if axis == "hours" else row["steps"] * agents, float(row["score"])))
    return points


def slow_curve(run_dirs: list[Path], axis: str) -> list[tuple]:
    """(x, mean, episodes, standard deviation of the episodes) of every bin from the first in which all runs have a value."""
    of_runs = [slow_points(run_dir, axis) for run_dir in run_dirs]
    end = min(max(x for x, _ in points) for points in of_runs)
    fewest = min(sum(x <= end for x, _ in points) for points in of_runs)
    bins = max(10, min(100, fewest // 30))
    edges = np.linspace(0, end, bins + 1)
    curve, last = [], [None] * len(of_runs)
    for i in range(bins):
        inside = [
            [score for x, score in points if edges[i] <= x and (x < edges[i + 1] or (i == bins - 1 and x == end))]
            for points in of_runs
        ]
        for run, values in enumerate(inside):
            if values:
                mean = sum(values) / len(values)
                last[run] = (mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)))
        if None not in last:
            mean = sum(value for value, _ in last) / len(last)
            curve.append(((edges[i] + edges[i + 1]) / 2, mean, sum(map(len, inside)), last[0][1]))
    return curve


def slow_windows(run_dir: Path) -> tuple[float, float, float]:
    scores = [score for _, score in sorted(slow_points(run_dir, "hours"), key=lambda point: point[0])]
    width = min(100, len(scores))
    means = [sum(scores[i : i + width]) / width for i in range(len(scores) - width + 1)]
    return means[0], max(means), means[-1]


def line(run_dirs: list[Path]) -> learning_curves.Line:
    [group] = grouped([runs.open_run(path) for path in run_dirs], "exchange")
    return learning_curves.by_game([group])[0][0]


@pytest.mark.parametrize("axis", ["steps", "hours"])
@pytest.mark.parametrize("sizes", [[(350, 100)], [(350, 100), (200, 80)], [(3, 100), (5, 60), (350, 100)]])
def test_curves_are_those_of_a_plain_loop(tmp_path, axis, sizes):
    run_dirs = [make(tmp_path / f"r{i}", i, number=number, last=last) for i, (number, last) in enumerate(sizes)]
    curve = learning_curves.curve(line(run_dirs), axis)
    x, mean, episodes, deviation = np.array(slow_curve(run_dirs, axis)).T
    np.testing.assert_allclose([curve.x, curve.value, curve.episodes], [x, mean, episodes], rtol=1e-9)
    if len(sizes) == 1:
        np.testing.assert_allclose([curve.low, curve.high], [mean - deviation, mean + deviation], rtol=1e-9)
    else:
        assert (curve.low <= curve.value + 1e-9).all() and (curve.value <= curve.high + 1e-9).all()


def test_the_interquartile_mean_goes_over_games_and_seeds(tmp_path):
    """Four seeds of two games: a quarter of the eight runs is cut off at either end."""
    found = []
    for env in ("pong", "breakout"):
        for seed in range(4):
            found.append(runs.open_run(make(tmp_path / f"{env}{seed}", seed, env=env)))
    [all_games], notes = learning_curves.over_games(grouped(found, "exchange"))
    curve = learning_curves.curve(all_games, "steps")
    assert notes == []
    values = []
    for run in found:
        end = min(float(r.scores["steps"].max()) for r in found)
        edges = np.linspace(0, end, len(curve.x) + 1)
        last = [s for x, s in zip(run.scores["steps"], run.scores["score"]) if edges[-2] <= x <= end]
        random, human = (reference.scores[run.config["env"]][0] for reference in (references.RANDOM, references.HUMAN))
        values.append((sum(last) / len(last) - random) / (human - random))
    assert curve.value[-1] == pytest.approx(sum(sorted(values)[2:6]) / 4)


def test_an_episode_on_an_edge_is_in_the_bin_that_begins_there():
    number, mean, spread = learning_curves.bin_scores(
        np.array([0.0, 1.0, 1.5, 4.0, 4.5]), np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    )
    assert number.tolist() == [1, 2, 0, 1]  # what lies beyond the last edge is in none
    np.testing.assert_array_equal(mean, [1, 3, np.nan, 8])
    np.testing.assert_array_equal(spread, [0, 1, np.nan, 0])
    np.testing.assert_array_equal(learning_curves.carried(mean), [1, 3, 3, 8])


def test_a_line_that_ends_before_a_run_of_its_group_is_remarked(tmp_path):
    make(tmp_path / "long", 0)
    make(tmp_path / "short", 1, last=30)
    drawn = line([tmp_path / "long", tmp_path / "short"])
    longest, shortest = (max(x for x, _ in slow_points(tmp_path / name, "steps")) for name in ("long", "short"))
    said = f"CartPole-v1 gossip: drawn to {shortest:,.4g} steps, where one run ends (the last: {longest:,.4g})"
    assert said in learning_curves.short([drawn], ["steps"])


@pytest.mark.parametrize("number", [1, 60, 350])
def test_windows_are_those_of_a_plain_loop(tmp_path, number):
    run_dir = make(tmp_path / "r", 0, agents=1, number=number)
    score = runs.open_run(run_dir).scores["score"]
    np.testing.assert_allclose(learning_curves.windows(score), slow_windows(run_dir))


def test_groups(tmp_path):
    a, b = {"env": "pong", "exchange": "gossip"}, {"env": "breakout", "exchange": "gossip"}
    c = {"env": "pong", "exchange": "none", "network": "gala"}
    for i, (settings, gae_lambda) in enumerate([(a, 1.0), (a, 0.95), (c, 1.0), (b, 1.0), (a, 10)]):
        make(tmp_path / f"{i}", i, number=5, **settings, a2c=A2CSettings(gae_lambda=gae_lambda))
    found, _ = load([tmp_path])

    def groups(by):
        return [(group.env, group.label, [int(run.path.name) for run in group.runs]) for group in grouped(found, by)]

    assert groups("exchange") == [("breakout", "gossip", [3]), ("pong", "gossip", [0, 1, 4]), ("pong", "none", [2])]
    assert groups("method") == [("breakout", "GALA ring", [3]), ("pong", "GALA ring", [0, 1, 4]), ("pong", "independent", [2])]
    assert groups("network")[1:] == [("pong", "network unset", [0, 1, 4]), ("pong", "gala", [2])]
    assert groups("env") == [("breakout", "breakout", [3]), ("pong", "pong", [0, 1, 2, 4])]
    assert [group.name for group in grouped(found, "env")] == ["breakout", "pong"]
    assert groups("a2c.gae-lambda,exchange") == [
        ("breakout", "a2c.gae_lambda 1.0, gossip", [3]),
        ("pong", "a2c.gae_lambda 0.95, gossip", [1]),
        ("pong", "a2c.gae_lambda 1.0, gossip", [0]),
        ("pong", "a2c.gae_lambda 1.0, none", [2]),
        ("pong", "a2c.gae_lambda 10, gossip", [4]),
    ]
    assert any(
        "pong gossip: joins runs that differ in a2c.gae_lambda (" in note for note in mixtures(grouped(found, "exchange"))
    )


# Energy.


def energy_rows(count: int, joules: float) -> np.ndarray:
    rows = np.zeros(count, runs.TABLES["energy"])
    rows["hours"] = np.arange(1, count + 1) / 50
    rows["update"], rows["seconds"] = np.arange(1, count + 1), 72
    rows["cpu_joules"], rows["gpu_joules"], rows["node_joules"] = joules, np.nan, np.nan
    rows["cores_busy"], rows["gpus_busy"] = 0.5, np.nan
    return rows


def test_energy_is_added_over_nodes_and_time(tmp_path):
    """Two nodes of one rank each: 100 and 50 J in every row."""
    run_dir = begin(tmp_path / "r")
    random = np.random.default_rng(0)
    for rank, joules in ((0, 100), (1, 50)):
        write(run_dir, rank, 0, updates=update_rows(1, 100), episodes=episode_rows(random, 60), energy=energy_rows(100, joules))
    run = runs.open_run(run_dir)
    hours, joules, whose = run.joules
    assert whose == "CPU" and joules == pytest.approx(150 * np.arange(1, 101))
    for score in run.scores[:: len(run.scores) // 7]:
        assert score["kilojoules"] == pytest.approx(np.interp(score["hours"], hours, 0.15 * np.arange(1, 101)), rel=1e-6)
    speed = throughput.measure(run, grouped([run], "exchange")[0])
    assert speed.watts == pytest.approx(150 / 72) and speed.cores_busy == 0.5
    said = learning_curves.answer([run], learning_curves.Curves(runs=()))
    assert {row[2] for row in said.points.rows} == {"steps", "hours", "kilojoules"}
    plt.close("all")


def test_energy_that_one_node_does_not_count_is_not_available(tmp_path):
    run_dir = begin(tmp_path / "r")
    for rank in range(2):
        rows = energy_rows(10, 100)
        if rank:
            rows["cpu_joules"] = np.nan
        write(run_dir, rank, 0, updates=update_rows(1, 10), energy=rows)
    assert runs.open_run(run_dir).joules[2] == ""


# Throughput, staleness, robustness, scores.


def test_rates_and_efficiency(tmp_path):
    """80 steps every 72 s; twice the ranks do 1.5 times as much."""
    make(tmp_path / "two", 0)
    four = begin(tmp_path / "four", agents=4)
    for rank in range(4):
        rows = update_rows(1, 100)
        rows["hours"] /= 0.75
        rows["simulate"], rows["cpu"] = 30, 60
        write(four, rank, 0, updates=rows)
    found, _ = load([tmp_path])
    [group] = grouped(found, "exchange")
    speeds = {run.agents: throughput.measure(run, group) for run in group.runs}
    assert speeds[2].frames == pytest.approx(2 * STEPS / 72)
    assert speeds[4].frames == pytest.approx(4 * 0.75 * STEPS / 72)
    assert speeds[4].sections[1] == pytest.approx(30) and speeds[4].sections[-1] == pytest.approx(96 - 30)
    assert speeds[4].cores_used == pytest.approx(4 * 60 / 96)
    weak = throughput.efficiency(speeds[4], list(speeds.values()), lambda s: s.run.config["num_envs"])
    strong = throughput.efficiency(speeds[4], list(speeds.values()), lambda s: s.run.settings()["simulators"])
    assert weak == pytest.approx(75) and math.isnan(strong)


def test_atari_has_four_frames_a_step():
    assert references.is_atari("pong") and references.is_atari("ms_pacman")
    assert not any(references.is_atari(name) for name in ("CartPole-v1", "MinAtar/Breakout-v1", "ALE/Pong-v5"))


def test_ages_and_skips_are_counted(tmp_path):
    run_dir = begin(tmp_path / "r")
    for rank in range(2):
        rows = update_rows(1, 50)
        rows["staleness"][10:15] = range(1, 6)
        rows["poke_gap"] = 0.001 * rows["update"]
        mixes = mix_rows(1, 50)
        mixes["peer"], mixes["version"] = 1 - rank, mixes["update"] - mixes["update"] % 3
        write(run_dir, rank, 0, updates=rows, mixes=mixes)
    said = staleness.answer([runs.open_run(run_dir)], Options(runs=()))
    row = dict(zip(said.table.headings, said.table.rows[0]))
    assert (row["edges"], row["messages"], row["oldest"], row["longest staleness"]) == (2, 100, 2, 5)
    assert row["skipped (%)"] == 10 and row["longest gap (s)"] == pytest.approx(0.05)
    counts = {(r[2], r[3], int(r[4])): int(r[5]) for r in said.points.rows}
    assert counts == {(1 - rank, rank, age): sum(u % 3 == age for u in range(1, 51)) for rank in range(2) for age in range(3)}
    columns, shares = staleness.histogram({(0, 1): np.array([0, 0, 1, 5]), (1, 0): np.array([-3, 1])})
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert columns[0] == -3.5 and columns[-1] == 5.5
    plt.close("all")


def test_convergent_runs_are_counted(tmp_path):
    """Final scores of make() are about 100; thresholds on either side."""
    for seed in range(3):
        make(tmp_path / f"s{seed}", seed)
    make(tmp_path / "late", 9, last=30)
    make(tmp_path / "more", 5, num_envs=32)
    found, _ = load([tmp_path])
    [group] = grouped(found, "exchange")
    final = {run.path.name: sum(sorted(slow_points(run.path, "hours"))[i][1] for i in range(-100, 0)) / 100 for run in found}
    threshold = (final["late"] + min(final[f"s{seed}"] for seed in range(3))) / 2
    counts = {c.simulators: (c.convergent, c.runs) for c in robustness.count_runs(group, threshold)}
    assert counts == {32: (3, 4), 64: (1, 1)}


def test_thresholds_are_half_way_to_the_reference():
    limits = robustness.thresholds({"pong", "CartPole-v1", "breakout"}, {"breakout": 100, "CartPole-v1": 400})
    assert limits == {"pong": pytest.approx((-20.7 + 17.3) / 2), "breakout": 100, "CartPole-v1": 400}


GAMES = np.dtype([("policy", "<i4"), ("game", "<i4"), ("score", "<f4"), ("length", "<i4")])


def evaluate(run_dir: Path, scores_of: dict[int, list[float]]) -> None:
    rows = [(policy, n, score, 100) for policy, values in scores_of.items() for n, score in enumerate(values)]
    store.write_evaluation(run_dir, np.array(rows, GAMES), {"checkpoint": 3, "arg_max": True, "seed": 1, "time": "now"})


def test_final_scores(tmp_path):
    """The newest evaluation, of the averaged policy; of independent agents each one's own."""
    for seed, values in enumerate([[1, 2, 3], [11, 12, 14]]):
        run_dir = make(tmp_path / f"g{seed}", seed, number=5, env="pong")
        evaluate(run_dir, {-1: [-21, -21]})
        evaluate(run_dir, {0: [21] * 3, 1: [21] * 3, -1: values})
    evaluate(make(tmp_path / "none", 0, number=5, env="pong", exchange="none"), {0: [4, 6], 1: [8, 10], -1: [-21, -21]})
    said = scores.answer(load([tmp_path])[0], scores.Scores(runs=(), table=tmp_path / "t.tex"))
    rows = {row[1]: dict(zip(said.table.headings, row)) for row in said.table.rows}
    gala, alone = rows["GALA ring"], rows["independent"]
    assert (gala["best"], gala["n"], gala["games"]) == ("12.333 ± 0.88", 2, 3)
    assert gala["mean"] == f"{(2 + 37 / 3) / 2:.5g} ± {np.std([2, 37 / 3], ddof=1) / 2**0.5:.2g}"
    assert gala["normalised"] == pytest.approx(((2 + 37 / 3) / 2 + 20.7) / 30)
    assert (alone["best"], alone["n"], alone["mean"]) == ("9 ± 1", 2, "7 ± 2")
    assert rows["A2C (SB3 zoo)"]["source"].startswith("github.com/")
    tex = (tmp_path / "t.tex").read_text()
    assert tex.count(r"\\") == len(said.table.rows) + 1 and "12.333 $\\pm$ 0.88" in tex
    for line in scores.markdown(said.table).splitlines():
        assert line.count("|") == len(said.table.headings) + 1
    plt.close("all")


def test_references_say_where_they_are_from():
    for reference in (references.RANDOM, references.HUMAN, *references.PUBLISHED):
        assert reference.protocol and reference.source and reference.scores
    assert references.normalised("pong", 9.3) == 1 and references.normalised("pong", -20.7) == 0
    assert math.isnan(references.normalised("CartPole-v1", 3.0))


def test_comparisons(tmp_path):
    for seed in range(4):
        make(tmp_path / f"g{seed}", seed, env="pong")
        make(tmp_path / f"a{seed}", 10 + seed, env="pong", exchange="allreduce", last=60)
    found, _ = load([tmp_path])
    said = compare.answer(found, compare.Compare(runs=(), threshold={"pong": 50}))
    row = dict(zip(said.table.headings, said.table.rows[0]))
    assert (row["group"], row["base"], row["P(improvement)"], row["scores"]) == ("GALA ring", "A2C", 1.0, "normalised")
    steps = []
    for run in found:
        if run.config["exchange"] == "gossip":
            points = sorted(slow_points(run.path, "hours"))
            means = [sum(score for _, score in points[i : i + 100]) / 100 for i in range(len(points) - 99)]
            steps.append(run.scores["steps"][99 + next(i for i, mean in enumerate(means) if mean >= 50)])
    assert row["steps to threshold"] == np.median(steps)
    assert row["low "] < row["IQM difference"] < row["high "]
    never = compare.answer(found, compare.Compare(runs=(), threshold={"pong": 1000})).table.rows[0]
    assert dict(zip(said.table.headings, never))["steps to threshold"] == math.inf
    plt.close("all")


# Consensus and gradients: real mixing of real vectors, written as a run writes them.

STEP, SIZE = 0.01, 4096


def gossip_run(path: Path, graph: topology.Topology, updates: int, late: float = 0.0, seed: int = 0) -> Path:
    """Agents that walk at random and mix; sketches are the vectors themselves.

    Args:
        late: how often a message does not come (then nothing is mixed), and how often it is an older or newer one.
    """
    n, random = graph.size, np.random.default_rng(seed)
    run_dir = begin(path, agents=n, total_steps=updates * STEPS * n, topology=graph.name)
    with h5py.File(run_dir / "run.h5", "r+") as file:
        file["starts/0"].attrs["beta"] = topology.mixing_rate(graph)
        file["starts/0"].attrs["period"] = graph.period
    x = {(rank, 0): np.zeros(SIZE) for rank in range(n)}
    y: dict[tuple[int, int], np.ndarray] = {}
    blank = np.zeros(updates, runs.TABLES["sketches"])
    tables = [{"updates": update_rows(1, updates), "mixes": [], "sketches": blank.copy()} for _ in range(n)]
    at = [0] * n
    while min(at) < updates:
        rank = int(random.choice([r for r in range(n) if at[r] < updates])) if late else min(range(n), key=lambda r: at[r])
        k = at[rank] = at[rank] + 1
        step = random.normal(size=SIZE)
        step *= STEP * random.uniform(0.2, 1) / np.linalg.norm(step)
        y[rank, k] = x[rank, k - 1] + step
        tables[rank]["updates"]["step_norm"][k - 1] = np.linalg.norm(step)
        tables[rank]["sketches"][k - 1] = (k, np.zeros(SIZE), step)
        if late:
            mix(rank, k, graph, x, y, tables, {peer: at[peer] for peer in range(n)}, random.random() < late)
        elif rank == n - 1:
            for other in range(n):
                mix(other, k, graph, x, y, tables, dict.fromkeys(range(n), k), False)
    for rank, table in enumerate(tables):
        for k in range(1, updates + 1):
            table["sketches"]["parameters"][k - 1] = x[rank, k]
        table["mixes"] = np.array(table["mixes"], runs.TABLES["mixes"])
        write(run_dir, rank, 0, **table)
    return run_dir


def mix(rank, k, graph, x, y, tables, versions, missed) -> None:
    peers = graph.in_peers(rank, k)
    x[rank, k] = y[rank, k].copy()
    if missed or any(versions[peer] == 0 for peer in peers):
        return
    weight = 1 / (1 + len(peers))
    x[rank, k] = weight * (y[rank, k] + sum(y[peer, versions[peer]] for peer in peers))
    tables[rank]["mixes"] += [(k, peer, versions[peer], weight) for peer in peers]


@pytest.fixture(autouse=True)
def room(monkeypatch):
    monkeypatch.setattr("recorded.ROOM", 1000)


@pytest.mark.parametrize("name", ["ring", "exponential", "one-peer-exponential"])
def test_the_bound_of_lock_step_is_the_papers(tmp_path, name):
    """A_s is (I - 11ᵀ/n) times the product of the matrices from s on: computed here as such."""
    graph, updates = topology.build(name, 4), 60
    run = runs.open_run(gossip_run(tmp_path / "r", graph, updates))
    found = consensus.drift(run)
    squares = sum(run.updates(rank)["step_norm"].astype(float) ** 2 for rank in range(4))
    for k, distance, bound in zip(found.updates, found.distance, found.bound):
        total, product = 0.0, np.eye(4) - 1 / 4
        for s in range(k, 0, -1):
            product = product @ graph.mixing_matrix(s)
            total += np.linalg.norm(product, 2) * squares[s - 1] ** 0.5
        assert bound == pytest.approx(total, rel=1e-6)
        parameters = [run.sketches(rank)["parameters"][k - 1].astype(float) for rank in range(4)]
        mean = sum(parameters) / 4
        assert distance == pytest.approx(sum(((p - mean) ** 2).sum() for p in parameters) ** 0.5)
        assert distance <= bound and distance <= found.prior
    assert 0.05 < found.ratio.max() <= 1
    if name == "ring":
        beta = math.cos(math.pi / 4)
        assert found.beta == pytest.approx(beta, abs=1e-12)
        last = sum(beta ** (updates + 1 - s) * squares[s - 1] ** 0.5 for s in range(1, updates + 1))
        assert found.bound[-1] == pytest.approx(last, rel=1e-6)
        assert found.prior == pytest.approx(beta / (1 - beta) * squares.max() ** 0.5)


@pytest.mark.parametrize("name, n", [("ring", 4), ("exponential", 4), ("ring", 3)])
def test_with_late_and_missing_messages_the_bound_is_of_what_happened(tmp_path, name, n):
    """Coefficients computed forwards, each vector as a sum of all steps: what the script computes backwards."""
    run = runs.open_run(gossip_run(tmp_path / "r", topology.build(name, n), 40, late=0.3, seed=2))
    found = consensus.drift(run)
    history = consensus.History(run)
    steps = {(rank, s): run.sketches(rank)["gradient"][s - 1].astype(float) for rank in range(n) for s in range(1, 41)}
    numbers = {node: i for i, node in enumerate(steps)}
    y: dict = {}
    for rank, k in history.order:
        y[rank, k] = np.eye(len(steps))[numbers[rank, k]]
        if k > 1:
            y[rank, k] += sum(weight * y[node] for node, weight in history.outputs[rank, k - 1])
    checked = 0
    for k, distance, bound in zip(found.updates, found.distance, found.bound):
        parts = [history.outputs[rank, k] for rank in range(n)]
        x = np.array([sum(weight * y[node] for node, weight in part) for part in parts])
        vectors = np.array([run.sketches(rank)["parameters"][k - 1] for rank in range(n)], float)
        np.testing.assert_allclose(x @ np.array(list(steps.values())), vectors, atol=1e-6)
        a = x - x.mean(axis=0)
        total = 0.0
        for s in range(1, 41):
            block = a[:, [numbers[rank, s] for rank in range(n)]]
            total += np.linalg.norm(block, 2) * sum(np.linalg.norm(steps[rank, s]) ** 2 for rank in range(n)) ** 0.5
        assert bound == pytest.approx(total, rel=1e-5) and distance <= bound * (1 + 1e-6)
        checked += 1
    assert checked == 40


def test_without_a_peer_s_rows_there_is_no_bound(tmp_path):
    """A live run whose ranks have written unequally far."""
    run_dir = gossip_run(tmp_path / "r", topology.build("ring", 3), 30)
    with h5py.File(run_dir / "metrics" / "rank00001.h5", "r+", locking=False) as file:
        file["rows/updates"][()] = 20
    bound = consensus.drift(runs.open_run(run_dir)).bound
    assert np.isfinite(bound[:20]).all() and np.isnan(bound[20:]).all()


def test_correlations_are_cosines(tmp_path):
    run_dir = begin(tmp_path / "r", agents=3)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(5, 3, SIZE)) + random.normal(size=(5, 1, SIZE))
    for rank in range(3):
        sketches = np.zeros(5, runs.TABLES["sketches"])
        sketches["update"], sketches["gradient"] = np.arange(1, 6) * 10, vectors[:, rank]
        mixes = mix_rows(1, 3)
        mixes["peer"] = (rank - 1) % 3
        write(run_dir, rank, 0, updates=update_rows(1, 60), sketches=sketches, mixes=mixes)
    run = runs.open_run(run_dir)
    [c] = gradients.correlations(grouped([run], "exchange")[0])
    for i in range(3):
        for j in range(3):
            a, b = vectors[:, i], vectors[:, j]
            cosine = [u @ v / (np.linalg.norm(u) * np.linalg.norm(v)) for u, v in zip(a, b)]
            assert c.mean[i, j] == pytest.approx(sum(cosine) / 5, abs=1e-6)
    assert c.peers.tolist() == [[False, False, True], [True, False, False], [False, True, False]]


# The model.


def case(exchange="gossip", name="ring", ranks=8, per_node=64, slow=-1, delay=0.0, **options) -> simulate.Case:
    options = simulate.Simulate(runs=(), **{"updates": 300, **options})
    return simulate.Case(exchange, name, ranks, per_node, slow, delay, options)


CONSTANT = simulate.Measured(np.full(10, 0.1), 0.0, 0.02)
VARYING = simulate.Measured(np.random.default_rng(0).gamma(20, 0.1 / 20, 10_000), 0.0, 0.0)


def test_the_model_reads_whom_the_training_reads():
    for name in ("ring", "exponential", "one-peer-exponential", "complete"):
        for n in (2, 3, 8, 12):
            graph = topology.build(name, n)
            read = [sorted(offset % n for offset in offsets) for offsets in simulate.offsets(name, n)]
            assert read == [sorted(-peer % n for peer in graph.in_peers(0, k)) for k in range(graph.period)]


def test_the_model_without_chance_is_arithmetic():
    assert simulate.simulate(case(), CONSTANT).rate == pytest.approx(80, rel=0.01)
    assert simulate.simulate(case(cores=2), CONSTANT).rate == pytest.approx(20, rel=0.01)  # four ranks a core
    assert simulate.simulate(case("allreduce"), CONSTANT).rate == pytest.approx(8 / 0.12, rel=0.01)
    assert simulate.simulate(case(slow=0, delay=0.9), CONSTANT).rate == pytest.approx(71, rel=0.01)
    assert simulate.simulate(case("allreduce", slow=0, delay=0.88), CONSTANT).rate == pytest.approx(8, rel=0.01)


def test_cores_are_shared_by_those_who_compute():
    """Three ranks on two cores: until 1.5 s each has 2/3 of a core, then the two that are left have one each."""
    np.testing.assert_allclose(simulate.shared(np.array([3.0, 1.0, 2.0]), 2), [3.5, 1.5, 2.5])
    np.testing.assert_allclose(simulate.shared(np.array([3.0, 1.0, 2.0]), 4), [3, 1, 2])
    np.testing.assert_allclose(simulate.shared(np.full(8, 1.0), 2), 4)


def test_a2c_waits_for_the_slowest_draw():
    rate = simulate.simulate(case("allreduce", ranks=16, updates=1000), VARYING).rate
    slowest = np.random.default_rng(1).choice(VARYING.work, (2000, 16)).max(axis=1).mean()
    assert rate == pytest.approx(16 / slowest, rel=0.02)


def test_messages_between_nodes_take_time():
    """A node a rank. A message takes 2.5 updates: every third update mixes, and what it mixes is 3 updates old."""
    here = simulate.simulate(case(per_node=64), VARYING)
    far = simulate.simulate(case(per_node=1, latency=0.25), CONSTANT)
    assert far.skipped == pytest.approx(2 / 3, abs=0.02) and np.median(far.ages) == 3
    assert here.skipped < 0.2 and abs(np.median(here.ages)) <= 1


def test_failures_cost_gossip_a_node_and_a2c_everything():
    """A failure of a node every 100 s, 8 nodes, 10 s down: each is up 10/11 of the time; A2C stops every 12.5 s."""
    hours = {"mtbf_hours": 100 / 3600, "restart_seconds": 10.0, "checkpoint_seconds": 5.0, "per_node": 1, "updates": 20_000}
    gossip = simulate.simulate(case(**hours), CONSTANT).rate
    synchronous = simulate.simulate(case("allreduce", **hours), CONSTANT).rate
    assert gossip == pytest.approx(80 * 10 / 11, rel=0.03)
    assert 8 / 0.12 * 0.3 < synchronous < 8 / 0.12 * 0.56  # 12.5 / 22.5, less what is lost since a checkpoint


def test_the_distance_of_the_model_is_that_of_the_matrices():
    """All ranks at one pace on one node: nearly lock-step, so that Σ β^2m of the spectrum gives the mean square."""
    n, found = 8, []
    eigenvalues = np.abs([(1 + np.exp(2j * np.pi * k / n)) / 2 for k in range(1, n)]) ** 2
    expected = math.sqrt((eigenvalues / (1 - eigenvalues)).sum() / n)
    for seed in range(8):
        found.append(simulate.simulate(case(ranks=n, seed=seed), CONSTANT).distance)
    assert np.mean(found) == pytest.approx(expected, rel=0.35)


def measured_run(path: Path, agents: int, exchange: str, seconds: float, **settings) -> Path:
    """A run whose every update takes so long, all of it processor time."""
    run_dir = begin(path, agents, exchange=exchange, total_steps=100 * STEPS * agents, **settings)
    with h5py.File(run_dir / "run.h5", "r+") as file:
        file["starts/0"].attrs["hosts"] = ["a"] * agents
    for rank in range(agents):
        rows = update_rows(1, 100)
        rows["hours"], rows["cpu"] = rows["update"] * seconds / 3600, seconds
        rows["exchange"] = 0.02 if exchange == "allreduce" else 0
        write(run_dir, rank, 0, updates=rows, mixes=mix_rows(1, 100)[: 100 * (exchange == "gossip")])
    return run_dir


def test_a_validation_states_the_error(tmp_path):
    measured_run(tmp_path / "2", 2, "gossip", 0.1)
    measured_run(tmp_path / "4", 4, "gossip", 0.2)  # as two cores would have it
    measured_run(tmp_path / "4s", 4, "gossip", 0.3, slow_rank="3:100ms")  # all are slow, which the model does not say
    measured_run(tmp_path / "a2", 2, "allreduce", 0.12)
    found, _ = load([tmp_path])
    said = simulate.answer(found, simulate.Simulate(runs=(), cores=2, validate=True))
    errors = {Path(row[0]).name: row[6] for row in said.table.rows}
    assert abs(errors["2"]) < 1 and abs(errors["4"]) < 1 and abs(errors["a2"]) < 1
    assert errors["4s"] == pytest.approx(100 * ((3 / 0.2 + 1 / 0.3) / (4 / 0.3) - 1), abs=1)
    plt.close("all")


# Damaged, live and finished runs; the command.


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> dict[str, list[Path]]:
    """Runs that all scripts can answer of, finished, live and cut short: two methods each."""
    folder = tmp_path_factory.mktemp("states")
    for state in ("finished", "live", "cut"):
        for exchange in ("gossip", "allreduce"):
            run_dir = begin(folder / state / exchange, 2, env="pong", exchange=exchange)
            last = 100 if state == "finished" else 60
            for rank in range(2):
                random = np.random.default_rng(rank)
                sketches = np.zeros(last // 10, runs.TABLES["sketches"])
                sketches["update"] = np.arange(10, last + 1, 10)
                sketches["parameters"], sketches["gradient"] = random.normal(size=(2, len(sketches), SIZE))
                updates = update_rows(1, last)
                updates["step_norm"], updates["cpu"] = 100, 0.05
                mixes = mix_rows(1, last) if exchange == "gossip" else np.zeros(0, runs.TABLES["mixes"])
                mixes["peer"], mixes["version"] = 1 - rank, mixes["update"]
                episodes = episode_rows(random, 200, last)
                write(run_dir, rank, 0, updates=updates, episodes=episodes, mixes=mixes, sketches=sketches)
            evaluate(run_dir, {-1: [1.0, 2.0], 0: [0.0, 1.0], 1: [2.0, 3.0]})
        if state == "cut":
            third = write(folder / state / "gossip", 1, 60, updates=update_rows(61, 70))
            cut(third)
    return {state: [folder / state] for state in ("finished", "live", "cut")}


@pytest.mark.parametrize("state", ["finished", "live", "cut"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_answers_of_runs_in_any_state(states, tmp_path, name, state, monkeypatch, capsys):
    module = sys.modules[name]
    monkeypatch.chdir(tmp_path)
    from script import main

    main(module.answer, SCRIPTS[name], module.__doc__, [*map(str, states[state]), "--out", "figure.png"])
    out, err = capsys.readouterr()
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.reader(open(tmp_path / "figure.csv")))
    assert len(rows) > 1 and len({len(row) for row in rows}) == 1
    assert "pong" in out or "A2C" in out
    assert ("60% done; read as far as it goes" in err) == (state != "finished")
    assert ("cannot be read" in err) == (state == "cut")


def command(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, str(ANALYSIS / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True)


def test_the_command_on_one_run(tmp_path):
    run_dir = make(tmp_path / "r", 0)
    done = command("learning_curves", "r", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    header, row, _, *written = done.stdout.splitlines()
    first, best, last = (f"{mean:.3g}" for mean in slow_windows(run_dir))
    assert header.split() == ["run", "group", "agents", "steps", "hours", "episodes", "first", "best", "last", "state"]
    assert row.split() == ["r", "CartPole-v1", "GALA", "ring", "2", "16,000", "2", "700", first, best, last, "finished"]
    assert written == ["r/learning_curves.png", "r/learning_curves.csv"]
    with open(run_dir / "learning_curves.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["axis"] == "hours"]
    np.testing.assert_allclose(
        [(float(row["x"]), float(row["value"]), int(row["episodes"])) for row in rows],
        [point[:3] for point in slow_curve([run_dir], "hours")],
    )


def test_the_command_on_several_runs_some_of_them_broken(tmp_path):
    for seed in range(3):
        make(tmp_path / "all" / f"g{seed}", seed)
    make(tmp_path / "all" / "n", 3, exchange="none", agents=1, last=50)
    other = make(tmp_path / "all" / "pong", 4, env="pong")
    begin(tmp_path / "all" / "new")
    begin(tmp_path / "all" / "torn")
    cut(tmp_path / "all" / "torn" / "run.h5")
    (other / "metrics" / "rank00001.h5").unlink()
    done = command("learning_curves", "all", "--by", "exchange", "--out", "curves.svg", cwd=tmp_path)
    assert done.returncode == 0
    notes = done.stderr.splitlines()
    assert all(line.startswith("note: ") for line in notes)
    assert any("all/torn/run.h5: cannot be read" in line for line in notes)
    assert any("all/new: no finished episode" in line for line in notes)
    assert "note: all/pong/metrics/rank00001.h5: missing" in notes
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["all/g0", "all/g1", "all/g2", "all/n", "all/pong"]
    assert "50% done" in lines[4] and "finished, metrics of 1 of 2 agents" in lines[5]
    assert "<svg" in (tmp_path / "curves.svg").read_text()


BAD = [
    ("learning_curves", ["nope"], "nope: nothing is there; a run directory is expected"),
    ("learning_curves", ["run", "nope"], "nope: nothing is there"),
    ("learning_curves", ["empty"], "empty: no run is there (no run.h5); a run directory or a folder of runs is expected"),
    ("learning_curves", ["new"], "new: no finished episode is there; one or more is expected"),
    ("learning_curves", ["torn"], "run.h5: cannot be read ("),
    ("learning_curves", ["run", "--by", "colour"], "--by colour: no such setting; one of a2c.clip_rewards, a2c.decay_lr"),
    ("learning_curves", ["run", "--by", "exchange,"], "--by : no such setting; one of"),
    (
        "learning_curves",
        ["run", "--out", "curves.txt"],
        "--out curves.txt: a file name that ends in .png, .pdf, .svg",
    ),
    ("learning_curves", ["run", "--out", "no/where.png"], "--out no/where.png: there is no folder no"),
    ("learning_curves", ["run", "--out", "folder.png"], "folder.png"),
    ("learning_curves", ["run", "--statistic", "iqm"], "--statistic iqm: no run of beam_rider"),
    ("learning_curves", [], "no run is named"),
    ("staleness", ["alone"], "no run of --exchange gossip on 2 agents or more is there"),
    ("throughput", ["new"], "new: fewer than two updates are there"),
    ("scores", ["run"], "run: no evaluation is there; python -m gala_mpi.evaluate run makes one"),
    ("compare", ["run"], "--by method: all runs are in one group, GALA ring; two or more groups are expected"),
    ("compare", ["run", "alone", "--base", "A3C"], "--base A3C: no such group; one of GALA ring, independent is expected"),
    ("robustness", ["run"], "CartPole-v1: no threshold is known; --threshold CartPole-v1 SCORE is expected"),
    ("consensus", ["run"], "run: no sketches of 2 agents or more are there"),
    ("gradients", ["alone"], "alone: no sketches of 2 agents or more are there"),
    ("simulate", ["alone"], "alone: a run of --exchange gossip"),
    ("simulate", ["run", "--topologies", "star"], "--topologies star: one of ring, exponential"),
]


@pytest.mark.parametrize("script, arguments, said", BAD)
def test_bad_input_is_one_line_and_status_2(tmp_path, script, arguments, said, monkeypatch, capsys):
    from script import main

    make(tmp_path / "run", 0)
    make(tmp_path / "alone", 1, agents=1, exchange="none")
    begin(tmp_path / "new")
    begin(tmp_path / "torn")
    cut(tmp_path / "torn" / "run.h5")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {**SCRIPTS, "simulate": simulate.Simulate}[script]
    with pytest.raises(SystemExit) as ended:
        main(sys.modules[script].answer, options, "", arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and error.count("\n") == 1 and error.startswith(f"{script}.py: ")


def test_a_kill_leaves_the_old_file(tmp_path):
    """Killed in the middle of the second writing: what the first one wrote is there, whole."""
    path = tmp_path / "numbers.csv"
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from script import Table, write_csv
def rows(last):
    yield from ([n] for n in range(100_000))
    yield [last()]
path = Path(sys.argv[2])
write_csv(Table(("n",), rows(lambda: 7)), path)
write_csv(Table(("n",), rows(lambda: os._exit(9))), path)
"""
    done = subprocess.run([sys.executable, "-c", program, str(ANALYSIS), str(path)], check=False)
    assert done.returncode == 9
    lines = path.read_text().split()
    assert (lines[0], lines[-1], len(lines)) == ("n", "7", 100_002)


def test_bad_input_of_the_real_command(tmp_path):
    done = command("learning_curves", "nope", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "learning_curves.py: nope: nothing is there; a run directory is expected\n"
    assert command("learning_curves", "nope", "--colour", cwd=tmp_path).returncode == 2


# The page.

CHROMIUM = shutil.which("chromium")
LOOK = """
<script>
window.onerror = message => { document.title = "error " + message };
window.onload = () => {
  const seen = [...document.images].map(image => ({
    complete: image.complete && image.naturalWidth > 0 && image.getBoundingClientRect().width > 100, alt: image.alt.length }));
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.body.dataset.seen = JSON.stringify({ images: seen, wide: wide });
};
</script>
"""


def test_the_page_holds_every_answer_and_loads_nothing(states, tmp_path):
    found, problems = load(states["live"])
    text = report.page(found, problems, report.Report(runs=tuple(states["live"])))
    for name in SCRIPTS:
        assert f'<section id="{name}">' in text, name
    assert "60% done; read as far as it goes" in text
    assert "<script" not in text
    for address in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert address.startswith(("data:", "#")), address


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium (make packages installs it as root)")
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(states, tmp_path, width):
    """Every figure is there and visible and has words for those who cannot see it; nothing is wider than the screen."""
    assert report.main([str(states["finished"][0]), "--out", str(tmp_path / "r.html")]) is None
    page = tmp_path / "framed.html"
    page.write_text((tmp_path / "r.html").read_text().replace("</body>", LOOK + "</body>"))
    # A window of headless Chromium is 500 pixels wide at least; a frame is as narrow as it is told to be.
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe src="framed.html" style="width:{width}px;height:900px;border:0"></iframe>')
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--virtual-time-budget=5000"]
    flags += ["--enable-logging=stderr", "--log-level=0", "--window-size=1400,1000", f"--user-data-dir={tmp_path / 'profile'}"]
    script = "<script>onload = () => document.body.dataset.seen = frames[0].document.body.dataset.seen</script>"
    outer.write_text(outer.read_text() + script)
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=240)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert len(seen["images"]) == len(SCRIPTS)
    assert all(image["complete"] and image["alt"] > 30 for image in seen["images"])
    assert seen["wide"] <= 0


def test_bad_input_of_the_report(tmp_path):
    make(tmp_path / "run", 0)
    for arguments, said in [
        (["nope"], "report.py: nope: nothing is there"),
        (["run", "--out", "r.pdf"], "report.py: --out r.pdf: a file name that ends in .html is expected"),
        (["run", "--out", "no/r.html"], "report.py: --out no/r.html: there is no folder no"),
        (["run", "--by", "colour"], "report.py: --by colour: no such setting"),
    ]:
        done = command("report", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and said in done.stderr, done.stderr


# Exports.


def test_csv_files_hold_the_tables(tmp_path):
    run_dir = make(tmp_path / "r", 0, number=7)
    done = command("export", "r", "--to", "out", "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = runs.open_run(run_dir)
    for rank in range(2):
        with open(tmp_path / "out" / "r" / f"rank{rank:05d}" / "episodes.csv") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["score"]) for row in rows] == run.episodes(rank)["score"].tolist()


def test_event_files_hold_the_scalars(tmp_path):
    pytest.importorskip("tensorboardX", reason="needs tensorboardX (pip install .[tensorboard])")
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    run_dir = make(tmp_path / "r", 0, number=7)
    done = command("export", "r", "--to", "out", "--format", "tensorboard", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "out" / "r" / "rank00001").glob("events.*")
    data, found = file.read_bytes(), []
    while data:  # records: length, its checksum, an event, its checksum
        length = int.from_bytes(data[:8], "little")
        assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    expected = [(row["steps"] * 2, "episodes/score", row["score"]) for row in runs.open_run(run_dir).episodes(1)]
    assert [row for row in found if row[1] == "episodes/score"] == expected


def test_without_tensorboardx_it_is_said(tmp_path):
    make(tmp_path / "r", 0, number=7)
    without = FORBID.replace('"mpi4py"', '"tensorboardX"')
    words = [sys.executable, "-c", without, str(ANALYSIS), "__main__", str(ANALYSIS / "export.py"), "r", "--to", "out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("export.py: --format tensorboard: tensorboardX is not installed (pip install tensorboardX)")


# Nothing of the training is needed.

FORBID = """
import runpy, sys

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"mpi4py", "torch", "gymnasium", "ale_py", "gala_mpi"}:
            raise ImportError(f"{name} is imported")

sys.meta_path.insert(0, Forbid())
sys.path.insert(0, sys.argv[1])
name, sys.argv = sys.argv[2], sys.argv[3:]
runpy.run_path(sys.argv[0], run_name=name)
"""


def without_training(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a script as module `name` where the training's dependencies cannot be imported."""
    words = [sys.executable, "-c", FORBID, str(ANALYSIS), name, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})


@pytest.mark.parametrize("script", sorted(ANALYSIS.glob("*.py")), ids=lambda script: script.name)
def test_the_analysis_needs_nothing_of_the_training(script):
    done = without_training("imported", script)
    assert done.returncode == 0, done.stderr


def test_learning_curves_needs_nothing_of_the_training(tmp_path):
    run_dir = make(tmp_path / "r", 0)
    done = without_training("__main__", ANALYSIS / "learning_curves.py", run_dir)
    assert done.returncode == 0, done.stderr
    assert (run_dir / "learning_curves.png").exists()


def test_what_a_laptop_needs_is_what_the_project_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for line in (ANALYSIS / "requirements.txt").read_text().splitlines():
        assert line.startswith("#") or line in project, line
