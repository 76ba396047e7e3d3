"""The figures of the analysis, on run directories that the project's own writers made, against plain loops."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from recorded import STEPS, begin, command, episode_rows, evaluate, make, mix_rows, update_rows, write

import compare
import curves
import learning_curves
import published
import robustness
import scores
import staleness
import tables
import throughput
from gala_mpi.config import A2CSettings
from gala_mpi.run import open_run
from gala_mpi.run.parts import counted
from gala_mpi.run.tables import TABLES
from groups import grouped, load, mixtures
from script import Options

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
    """(x, mean, episodes, standard deviation of the first run's episodes, runs) of every bin in which all runs that have not
    ended have a value."""
    of_runs = [slow_points(run_dir, axis) for run_dir in run_dirs]
    ends = [max(x for x, _ in points) for points in of_runs]
    end = max(ends)
    fewest = min(len(points) * end / own for points, own in zip(of_runs, ends))
    bins = max(10, min(100, int(fewest // 30)))
    edges = np.linspace(0, end, bins + 1)

    def inside(points: list, i: int) -> list[float]:
        return [score for x, score in points if edges[i] <= x and (x < edges[i + 1] or (i == bins - 1 and x == end))]

    last_bins = [max(i for i in range(bins) if inside(points, i)) for points in of_runs]
    curve, last = [], [None] * len(of_runs)
    for i in range(bins):
        going = [run for run, last_bin in enumerate(last_bins) if i <= last_bin or last_bin >= bins - 2]
        episodes = 0
        for run in going:
            if values := inside(of_runs[run], i):
                mean = sum(values) / len(values)
                last[run] = (mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)))
                episodes += len(values)
        if all(last[run] is not None for run in going):
            mean = sum(last[run][0] for run in going) / len(going)
            curve.append(((edges[i] + edges[i + 1]) / 2, mean, episodes, last[0] and last[0][1], len(going)))
    return curve


def slow_windows(run_dir: Path) -> tuple[float, float, float]:
    scores = [score for _, score in sorted(slow_points(run_dir, "hours"), key=lambda point: point[0])]
    width = min(100, len(scores))
    means = [sum(scores[i : i + width]) / width for i in range(len(scores) - width + 1)]
    return means[0], max(means), means[-1]


def line(run_dirs: list[Path]) -> curves.Line:
    [group] = grouped([open_run(path) for path in run_dirs], "exchange")
    return learning_curves.by_game([group])[0][0]


@pytest.mark.parametrize("axis", ["steps", "hours"])
@pytest.mark.parametrize("sizes", [[(350, 100)], [(350, 100), (200, 80)], [(3, 100), (5, 60), (350, 100)]])
def test_curves_are_those_of_a_plain_loop(tmp_path, axis, sizes):
    run_dirs = [make(tmp_path / f"r{i}", i, number=number, last=last) for i, (number, last) in enumerate(sizes)]
    curve = curves.curve(line(run_dirs), axis)
    x, mean, episodes, deviation, runs = np.array(slow_curve(run_dirs, axis)).T
    np.testing.assert_allclose([curve.x, curve.value, curve.episodes, curve.runs], [x, mean, episodes, runs], rtol=1e-9)
    if len(sizes) == 1:
        np.testing.assert_allclose([curve.low, curve.high], [mean - deviation, mean + deviation], rtol=1e-9)
    else:
        several = curve.runs > 1
        assert ((curve.low <= curve.value + 1e-9) & (curve.value <= curve.high + 1e-9))[several].all()
        assert np.isnan([curve.low, curve.high])[:, ~several].all()


def test_the_interquartile_mean_goes_over_games_and_seeds(tmp_path):
    """Four seeds of two games: a quarter of the eight runs is cut off at either end."""
    found = []
    for env in ("pong", "breakout"):
        for seed in range(4):
            found.append(open_run(make(tmp_path / f"{env}{seed}", seed, env=env)))
    [all_games], notes = learning_curves.over_games(grouped(found, "exchange"))
    curve = curves.curve(all_games, "steps")
    assert notes == []
    values = []
    for run in found:
        end = min(float(r.scores["steps"].max()) for r in found)
        edges = np.linspace(0, end, len(curve.x) + 1)
        last = [s for x, s in zip(run.scores["steps"], run.scores["score"]) if edges[-2] <= x <= end]
        random, human = (reference.scores[run.config["env"]][0] for reference in (published.RANDOM, published.HUMAN))
        values.append((sum(last) / len(last) - random) / (human - random))
    assert curve.value[-1] == pytest.approx(sum(sorted(values)[2:6]) / 4)


def test_the_command_on_one_run(tmp_path):
    run_dir = make(tmp_path / "r", 0)
    done = command("learning_curves", "r", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    header, row, _, sentence, _, *written = done.stdout.splitlines()
    assert sentence.startswith("CartPole-v1: the score of GALA ring goes from ")
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


def test_an_episode_on_an_edge_is_in_the_bin_that_begins_there():
    number, mean, spread = curves.bin_scores(
        np.array([0.0, 1.0, 1.5, 4.0, 4.5]), np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    )
    assert number.tolist() == [1, 2, 0, 1]  # what lies beyond the last edge is in none
    np.testing.assert_array_equal(mean, [1, 3, np.nan, 8])
    np.testing.assert_array_equal(spread, [0, 1, np.nan, 0])
    np.testing.assert_array_equal(curves.carried(mean), [1, 3, 3, 8])


def test_a_run_that_begins_where_another_has_ended_is_drawn(tmp_path):
    """A sweep's first run was killed early, the last one has just finished its first game."""
    for seed, (first, last) in enumerate([(1, 10), (50, 60)]):
        run_dir = begin(tmp_path / str(seed), seed=seed)
        for rank in range(2):
            episodes = episode_rows(np.random.default_rng(seed), 20, last, first)
            write(run_dir, rank, 0, updates=update_rows(1, last), episodes=episodes)
    found, _ = load([tmp_path])
    drawn = curves.curve(line([tmp_path / "0", tmp_path / "1"]), "steps")
    assert np.isfinite(drawn.value).all() and drawn.x[-1] >= 50 * STEPS * 2 * 0.9
    learning_curves.answer(found, learning_curves.Curves(runs=()))
    plt.close("all")


@pytest.mark.parametrize("number", [1, 60, 350])
def test_windows_are_those_of_a_plain_loop(tmp_path, number):
    run_dir = make(tmp_path / "r", 0, agents=1, number=number)
    score = open_run(run_dir).scores["score"]
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
    assert groups("simulators") == groups("environments")  # the older word
    assert groups("environments")[0] == ("breakout", "environments 32", [3])
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
    rows = np.zeros(count, TABLES["energy"])
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
    run = open_run(run_dir)
    hours, joules, whose = run.joules
    assert whose == "CPU" and joules == pytest.approx(150 * np.arange(101))
    for score in run.scores[:: len(run.scores) // 7]:
        assert score["kilojoules"] == pytest.approx(np.interp(score["hours"], hours, 0.15 * np.arange(101)), rel=1e-6)
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
    assert open_run(run_dir).joules[2] == ""


@pytest.mark.parametrize("counted, watts, whose", [(("cpu", "gpu"), 3, "CPU and GPU"), (("cpu", "gpu", "node"), 5, "node")])
def test_a_node_s_own_counter_counts_before_its_parts(tmp_path, counted, watts, whose):
    run_dir, of = begin(tmp_path / "r", agents=1), {"cpu": 1, "gpu": 2, "node": 5}
    rows = energy_rows(100, np.nan)
    for name in counted:
        rows[f"{name}_joules"] = 72 * of[name]
    write(run_dir, 0, 0, updates=update_rows(1, 100), energy=rows)
    run = open_run(run_dir)
    assert run.joules[2] == whose
    assert throughput.measure(run, grouped([run], "exchange")[0]).watts == pytest.approx(watts)


@pytest.mark.parametrize("later", [0.0001, 0.01])
def test_power_counts_while_every_node_tells(tmp_path, later):
    """Two nodes of 100 W; the second is read so many hours after the first, every time."""
    run_dir = begin(tmp_path / "r")
    for rank in range(2):
        rows = energy_rows(5, 7200)
        rows["hours"] += rank * later
        write(run_dir, rank, 0, updates=update_rows(1, 100), energy=rows)
    run = open_run(run_dir)
    assert throughput.measure(run, grouped([run], "exchange")[0]).watts == pytest.approx(200)


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
    strong = throughput.efficiency(speeds[4], list(speeds.values()), lambda s: s.run.settings()["environments"])
    assert weak == pytest.approx(75) and math.isnan(strong)


def test_strong_efficiency_is_among_runs_of_as_many_environments(tmp_path):
    """The same 32 environments on 2 ranks and on 4, which need 0.8 of the time for as many steps."""
    for agents, num_envs in ((2, 16), (4, 8)):
        run_dir = begin(tmp_path / str(agents), agents, env="pong", num_envs=num_envs)
        for rank in range(agents):
            rows = update_rows(1, 100)
            rows["steps"] = 5 * num_envs * rows["update"]
            rows["hours"] *= 0.8 if agents == 4 else 1
            write(run_dir, rank, 0, updates=rows)
    found, _ = load([tmp_path])
    said = throughput.answer(found, Options(runs=()))
    rows = {row[1]: dict(zip(said.table.headings, row)) for row in said.table.rows}
    assert rows[2]["frames/s"] == pytest.approx(4 * 160 / 72) and rows[4]["frames/s"] == pytest.approx(4 * 160 / 57.6)
    assert rows[4]["strong (%)"] == pytest.approx(100 * 1.25 / 2) and math.isnan(rows[4]["weak (%)"])
    plt.close("all")


def test_atari_has_four_frames_a_step():
    assert all(published.is_atari(name) for name in ("pong", "ms_pacman", "ALE/Pong-v5"))
    assert not any(published.is_atari(name) for name in ("CartPole-v1", "MinAtar/Breakout-v1"))


def test_lags_and_skips_are_counted(tmp_path):
    run_dir = begin(tmp_path / "r")
    for rank in range(2):
        rows = update_rows(1, 50)
        rows["staleness"][10:15] = range(1, 6)
        rows["poke_gap"] = 0.001 * rows["update"]
        rows["poke_gap"][0] = 5  # the start, no gap between messages
        mixes = mix_rows(1, 50)
        mixes["peer"], mixes["version"] = 1 - rank, mixes["update"] - mixes["update"] % 3
        write(run_dir, rank, 0, updates=rows, mixes=mixes)
    said = staleness.answer([open_run(run_dir)], Options(runs=()))
    row = dict(zip(said.table.headings, said.table.rows[0]))
    assert (row["edges"], row["messages"], row["largest lag"], row["longest staleness"]) == (2, 100, 2, 5)
    assert row["skipped (%)"] == 10 and row["longest gap (s)"] == pytest.approx(0.05)
    assert said.sentence.startswith("Half of the messages lag at most 1 updates behind and 95% at most 2;")
    assert said.sentence.endswith("GALA ring, 10.0%, up to 5 in a row.")
    counts = {(r[2], r[3], int(r[4])): int(r[5]) for r in said.points.rows}
    assert counts == {(1 - rank, rank, lag): sum(u % 3 == lag for u in range(1, 51)) for rank in range(2) for lag in range(3)}
    restarted = np.zeros(4, TABLES["updates"])
    restarted["torn"] = [2, 5, 0, 3]
    assert counted(restarted["torn"]) == 8
    restarted["torn"] = -1
    assert counted(restarted["torn"]) == 0
    columns, shares = staleness.histogram({(0, 1): np.array([0, 0, 1, 5]), (1, 0): np.array([-3, 1])})
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert columns[0] == -3.5 and columns[-1] == 5.5
    plt.close("all")


def test_convergent_runs_are_counted(tmp_path):
    """Scores of make() rise to about 100; a threshold between those at the common step. One run has ended long before."""
    for seed in range(3):
        make(tmp_path / f"s{seed}", seed)
    late = make(tmp_path / "late", 9, last=30)
    make(tmp_path / "more", 5, num_envs=32)
    found, _ = load([tmp_path])
    ends = {run.path.name: max(slow_points(run.path, "steps"))[0] for run in found if run.path != late}
    end, final = min(ends.values()), {}
    for name in ends:
        reached = [score for steps, score in sorted(slow_points(tmp_path / name, "steps")) if steps <= end]
        final[name] = sum(reached[-100:]) / 100
    least, *_, most = sorted(final[f"s{seed}"] for seed in range(3))
    options = robustness.Robustness(runs=(), by="exchange", threshold={"CartPole-v1": (least + most) / 2})
    said = robustness.answer(found, options)
    rows = {row[1]: (row[2], row[3], row[-1]) for row in said.table.rows}
    converged = {
        n: sum(final[name] >= (least + most) / 2 for name in names) for n, names in ((32, ("s0", "s1", "s2")), (64, ("more",)))
    }
    assert rows == {32: (converged[32], 3, f"{end:,.0f} steps"), 64: (converged[64], 1, f"{end:,.0f} steps")}
    assert 0 < converged[32] < 3 and any(note.startswith(f"{late}: has episodes up to ") for note in said.notes)


def test_thresholds_are_half_way_to_the_reference():
    limits = robustness.thresholds({"pong", "CartPole-v1", "breakout"}, {"breakout": 100, "CartPole-v1": 400})
    assert limits == {"pong": pytest.approx((-20.7 + 17.3) / 2), "breakout": 100, "CartPole-v1": 400}


def test_final_scores(tmp_path):
    """The newest evaluation, of the averaged policy; of independent agents each one's own."""
    for seed, values in enumerate([[1, 2, 3], [11, 12, 14]]):
        run_dir = make(tmp_path / f"g{seed}", seed, number=5, env="pong")
        evaluate(run_dir, {-1: [-21, -21]})
        evaluate(run_dir, {0: [21] * 3, 1: [21] * 3, -1: values})
    evaluate(make(tmp_path / "none", 0, number=5, env="pong", exchange="none"), {0: [4, 6], 1: [8, 10], -1: [-21, -21]})
    said = scores.answer(load([tmp_path])[0], Options(runs=()))
    rows = {row[1]: dict(zip(said.table.headings, row)) for row in said.table.rows}
    gala, alone = rows["GALA ring"], rows["independent"]
    assert (gala["best"], gala["n"], gala["episodes"]) == ("12.333 ± 0.88", 2, 3)
    assert gala["mean"] == f"{(2 + 37 / 3) / 2:.5g} ± {np.std([2, 37 / 3], ddof=1) / 2**0.5:.2g}"
    assert gala["normalised"] == pytest.approx(((2 + 37 / 3) / 2 + 20.7) / 30)
    assert (alone["best"], alone["n"], alone["mean"]) == ("9 ± 1", 2, "7 ± 2")
    assert rows["A2C (SB3 zoo)"]["source"].startswith("github.com/")
    tex = tables.latex(said.table)
    assert tex.count(r"\\") == len(said.table.rows) + 1 and "12.333 $\\pm$ 0.88" in tex
    for line in tables.markdown(said.table).splitlines():
        assert line.count("|") == len(said.table.headings) + 1
    plt.close("all")


def test_references_say_where_they_are_from():
    for reference in (published.RANDOM, published.HUMAN, *published.PUBLISHED):
        assert reference.protocol and reference.source and reference.scores
    assert published.normalised("pong", 9.3) == 1 and published.normalised("pong", -20.7) == 0
    assert math.isnan(published.normalised("CartPole-v1", 3.0))


def test_comparisons(tmp_path):
    """Two agents each; A2C's runs end after 60 updates of 100, and scores are about the number of the update."""
    for seed in range(4):
        make(tmp_path / f"g{seed}", seed, env="pong")
        make(tmp_path / f"a{seed}", 10 + seed, env="pong", exchange="allreduce", last=60, total_steps=60 * STEPS * 2)
    found, _ = load([tmp_path])
    said = compare.answer(found, compare.Compare(runs=(), threshold={"pong": 50}))
    row = dict(zip(said.table.headings, said.table.rows[0]))
    assert (row["group"], row["base"], row["at"], row["scores"]) == ("GALA ring", "A2C", "9,600 steps", "points")
    steps, final = [], {"gossip": [], "allreduce": []}
    for run in found:
        points = sorted(slow_points(run.path, "hours"), key=lambda point: point[0])
        scores_until = [score for (_, score), done in zip(points, run.scores["steps"]) if done <= 9600]
        final[run.config["exchange"]].append(sum(scores_until[-100:]) / 100)
        if run.config["exchange"] == "gossip":
            means = [sum(score for _, score in points[i : i + 100]) / 100 for i in range(len(points) - 99)]
            steps.append(run.scores["steps"][99 + next(i for i, mean in enumerate(means) if mean >= 50)])
    better = [x > y for x in final["gossip"] for y in final["allreduce"]]
    assert row["P(improvement)"].value == sum(better) / 16
    assert row["to threshold"].value == np.median(steps)
    assert row["IQM difference"].low < row["IQM difference"].value < row["IQM difference"].high
    never = compare.answer(found, compare.Compare(runs=(), threshold={"pong": 1000})).table.rows[0]
    assert dict(zip(said.table.headings, never))["to threshold"].value == math.inf
    plt.close("all")
