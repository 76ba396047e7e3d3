"""The offline analysis against run directories that the project's own writers made, and against plain loops."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
ANALYSIS = ROOT / "analysis"
sys.path.insert(0, str(ANALYSIS))

import learning_curves  # noqa: E402
import runs  # noqa: E402
from gala_mpi import store  # noqa: E402
from gala_mpi.config import A2CSettings, Config  # noqa: E402

FACTS = {"time": "2026-01-02T03:04:05+0000", "hosts": ["a", "b"], "threads": [1, 1], "beta": 0.5, "resumed_from": 0}
STEPS = 80  # of an update
ROOM = 400


def begin(path: Path, agents: int = 2, **settings) -> Path:
    """The run.h5 of a run of 100 updates."""
    settings = {"env": "CartPole-v1", "total_steps": 100 * STEPS * agents, **settings}
    store.write_run(path, Config(**settings), agents, FACTS)
    return path


def write(path: Path, rank: int, after_update: int, **tables: np.ndarray) -> Path:
    """One more metrics file of a rank, with room for ROOM rows."""
    file = store.next_metrics_file(path, rank)
    layouts = {name: (dtype, ROOM) for name, dtype in runs.TABLES.items()}
    writer = store.Tables(file, layouts, {"rank": rank, "after_update": after_update})
    for name, rows in tables.items():
        writer.append(name, rows)
    writer.close()
    return file


def update_rows(first: int, last: int) -> np.ndarray:
    rows = np.zeros(last - first + 1, runs.TABLES["updates"])
    rows["update"] = np.arange(first, last + 1)
    rows["steps"], rows["hours"] = STEPS * rows["update"], rows["update"] / 50
    rows["entropy"] = np.sqrt(rows["update"])
    return rows


def episode_rows(random: np.random.Generator, number: int, last: int = 100, first: int = 1) -> np.ndarray:
    rows = np.zeros(number, runs.TABLES["episodes"])
    rows["update"] = np.sort(random.integers(first, last + 1, number))
    rows["steps"], rows["hours"] = STEPS * rows["update"], rows["update"] / 50 + random.uniform(0, 1e-3)
    rows["simulator"] = random.integers(0, 16, number)
    rows["length"] = random.integers(10, 500, number)
    rows["score"] = random.normal(rows["update"], 10)
    return rows


def mix_rows(first: int, last: int) -> np.ndarray:
    return np.array([(update, 1, update - 1, 0.5) for update in range(first, last + 1)], runs.TABLES["mixes"])


def make(path: Path, seed: int, agents: int = 2, number: int = 350, last: int = 100, **settings) -> Path:
    """A run with so many episodes of every agent."""
    random = np.random.default_rng(seed)
    begin(path, agents, seed=seed, **settings)
    for rank in range(agents):
        episodes = episode_rows(random, number, last)
        write(path, rank, 0, updates=update_rows(1, last), episodes=episodes, mixes=mix_rows(1, last))
    return path


# Reading.


def test_the_columns_are_those_of_the_writer():
    from gala_mpi import metrics

    assert runs.TABLES == {"updates": metrics.UPDATES, "episodes": metrics.EPISODES, "mixes": metrics.MIXES}
    assert runs.FORMAT == store.FORMAT


def test_a_run_reads_back_as_written(tmp_path):
    random = np.random.default_rng(0)
    run_dir = begin(tmp_path / "r", exchange="allreduce", a2c=A2CSettings(gae_lambda=0.95))
    written = [episode_rows(random, 30 + rank) for rank in range(2)]
    for rank in range(2):
        write(run_dir, rank, 0, updates=update_rows(1, 100), episodes=written[rank], mixes=mix_rows(1, 50))
    run = runs.open_run(run_dir)
    assert run.agents == 2 and run.config["exchange"] == "allreduce" and run.config["a2c"]["gae_lambda"] == 0.95
    assert run.starts == [FACTS | {"config": run.config}]
    for rank in range(2):
        np.testing.assert_array_equal(run.updates(rank), update_rows(1, 100))
        np.testing.assert_array_equal(run.episodes(rank), written[rank])
        np.testing.assert_array_equal(run.mixes(rank), mix_rows(1, 50))
    everything = run.all_episodes()
    assert everything["rank"].tolist() == [0] * 30 + [1] * 31
    assert everything["score"].tolist() == [*written[0]["score"], *written[1]["score"]]
    assert (run.state, run.steps, run.hours, run.problems) == ("finished", 2 * 100 * STEPS, 2.0, [])


def test_later_files_supersede_rows_beyond_their_start(tmp_path):
    """The run was resumed at update 40, again at 25 (the newer checkpoint was damaged), and began a next file at 60."""
    run_dir = begin(tmp_path / "r", agents=1)
    begin(run_dir, agents=1)
    random = np.random.default_rng(1)
    spans = [(0, 50), (40, 70), (25, 60), (60, 64)]  # after_update, last update
    written = []
    for after, last in spans:
        first = after + 1
        episodes, mixes = episode_rows(random, 60, last, first), mix_rows(first, last)
        written.append({"updates": update_rows(first, last), "episodes": episodes, "mixes": mixes})
        write(run_dir, 0, after, **written[-1])
    run = runs.open_run(run_dir)
    assert len(run.starts) == 2
    for name, read in (("updates", run.updates(0)), ("episodes", run.episodes(0)), ("mixes", run.mixes(0))):
        expected = []
        for file in range(len(spans)):
            for row in written[file][name]:
                if not any(row["update"] > after for after, _ in spans[file + 1 :]):
                    expected.append(row)
        assert read.tolist() == [row.tolist() for row in expected]
    assert run.updates(0)["update"].tolist() == list(range(1, 65))
    assert run.state == "64% done" and run.problems == []


def test_files_by_the_writer_of_the_training(tmp_path, monkeypatch):
    """`Metrics` itself: a file that gets full, a kill, and a resume at an earlier update."""
    from gala_mpi import metrics
    from gala_mpi.exchange import Mix

    monkeypatch.setattr(metrics, "ROOM", 8)
    losses = SimpleNamespace(policy=0.0, value=0.0, entropy=1.0)

    def record(tables, update, score):
        learner = SimpleNamespace(updates=update, steps=update * STEPS)
        counters = SimpleNamespace(mixes=[Mix(1, update - 1, 0.5)], staleness=0, torn=0, corrupt=0, poke_gap=0.0)
        episode = SimpleNamespace(simulator=0, length=5, score=score)
        tables.record(learner, losses, 0.1, [episode], counters, [], dict.fromkeys(metrics.SECTIONS, 0.0))
        tables.flush()

    run_dir = begin(tmp_path / "r", agents=1)
    first = metrics.Metrics(run_dir, 0, update=0, updates=100, peers=1, sketch_updates=0, hours=0.0)
    for update in range(1, 13):
        record(first, update, score=1)
    second = metrics.Metrics(run_dir, 0, update=10, updates=90, peers=1, sketch_updates=0, hours=0.5)
    for update in range(11, 15):
        record(second, update, score=2)
    run = runs.open_run(run_dir)
    assert len(run.parts[0]) == 3
    for table in (run.updates(0), run.episodes(0), run.mixes(0)):
        assert table["update"].tolist() == list(range(1, 15))
    assert run.episodes(0)["score"].tolist() == [1] * 10 + [2] * 4
    assert run.updates(0)["hours"][-1] > 0.5 and run.problems == []


def test_rows_beyond_the_counter_mean_nothing(tmp_path):
    """A live run: the writer is between the rows and the counter."""
    run_dir = begin(tmp_path / "r", agents=1)
    file = write(run_dir, 0, 0, updates=update_rows(1, 20), episodes=episode_rows(np.random.default_rng(2), 5, 20))
    with h5py.File(file, "r+", locking=False) as opened:
        for name, rows in (("updates", 20), ("episodes", 5), ("mixes", 0)):
            opened[name][rows : rows + 3] = np.frombuffer(b"\x7f" * 3 * opened[name].dtype.itemsize, opened[name].dtype)
    run = runs.open_run(run_dir)
    assert [len(table(0)) for table in (run.updates, run.episodes, run.mixes)] == [20, 5, 0]
    np.testing.assert_array_equal(run.updates(0), update_rows(1, 20))
    assert run.state == "20% done" and run.problems == []


def test_a_run_stays_what_it_was_when_it_was_opened(tmp_path):
    run_dir = begin(tmp_path / "r", agents=1)
    file = write(run_dir, 0, 0, updates=update_rows(1, 20))
    run = runs.open_run(run_dir)
    with h5py.File(file, "r+", locking=False) as opened:
        opened["updates"][20:30] = update_rows(21, 30)
        opened["rows/updates"][()] = 30
    assert len(run.updates(0)) == 20
    assert len(runs.open_run(run_dir).updates(0)) == 30


@pytest.mark.parametrize(
    "counter, read, problem",
    [
        (25, 20, "updates is read up to row 20, the counter says 25"),
        (ROOM + 1, 20, f"updates has room for {ROOM} rows, the counter says {ROOM + 1}"),
        (-1, 0, f"updates has room for {ROOM} rows, the counter says -1"),
    ],
)
def test_a_counter_without_its_rows(tmp_path, counter, read, problem):
    """A power cut may put the counter on disk without the rows; a damaged counter may say anything."""
    run_dir = begin(tmp_path / "r", agents=1)
    file = write(run_dir, 0, 0, updates=update_rows(1, 20))
    with h5py.File(file, "r+", locking=False) as opened:
        opened["rows/updates"][()] = counter
    run = runs.open_run(run_dir)
    assert len(run.updates(0)) == len(run.updates(0)) == read
    assert f"{file}: {problem}" in run.problems and len(run.problems) == len(set(run.problems))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def scribble(file: Path) -> None:
    file.write_bytes(b"\x00" * 5000)


def another_format(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        opened.attrs["format"] = 2


def without_start(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        del opened.attrs["after_update"]


def without_counter(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        del opened["rows/episodes"]


DAMAGES = [cut, scribble, another_format, without_start, without_counter]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_and_the_others_are_read(tmp_path, damage):
    run_dir = make(tmp_path / "r", seed=3, agents=3)
    whole = runs.open_run(run_dir)
    file = run_dir / "metrics" / "rank00001.h5"
    damage(file)
    run = runs.open_run(run_dir)
    assert [len(run.episodes(rank)) for rank in range(3)] == [350, 0, 350]
    assert len(run.updates(1)) == 0 and run.updates(1).dtype == runs.TABLES["updates"]
    assert set(run.all_episodes()["rank"]) == {0, 2}
    assert len(run.problems) == 1 and "\n" not in run.problems[0]
    assert run.problems[0].startswith(f"{file}: cannot be read (")
    assert run.state == "finished, metrics of 2 of 3 agents"
    # Damaged after the run was opened: the same, told when the rows are read.
    if damage in (cut, scribble):
        assert len(whole.mixes(1)) == 0 and whole.problems[0].startswith(f"{file}: mixes cannot be read (")


def test_missing_files_are_told(tmp_path):
    run_dir = begin(tmp_path / "r", agents=3)
    for after in (0, 10, 20):
        write(run_dir, 0, after, updates=update_rows(after + 1, after + 10))
    write(run_dir, 2, 0, updates=update_rows(1, 50))
    (run_dir / "metrics" / "rank00000-1.h5").unlink()
    (run_dir / "metrics" / "rank00002-old.h5").write_text("not ours")
    run = runs.open_run(run_dir)
    assert run.problems == [f"{run_dir}/metrics/rank00000-1.h5: missing", f"{run_dir}/metrics/rank00001.h5: missing"]
    assert run.updates(0)["update"].tolist() == [*range(1, 11), *range(21, 31)]
    assert run.state == "40% done, metrics of 2 of 3 agents"


def test_many_files_are_in_the_order_of_their_numbers(tmp_path):
    run_dir = begin(tmp_path / "r", agents=1)
    for after in range(12):
        write(run_dir, 0, after, updates=update_rows(after + 1, after + 1))
    assert runs.open_run(run_dir).updates(0)["update"].tolist() == list(range(1, 13))


def test_a_column_that_a_file_lacks(tmp_path):
    run_dir = begin(tmp_path / "r", agents=1)
    new = runs.TABLES["updates"]
    old = np.dtype([(name, new[name]) for name in new.names if name not in ("rss", "torn")])
    layouts = {name: (dtype, ROOM) for name, dtype in (runs.TABLES | {"updates": old}).items()}
    writer = store.Tables(store.next_metrics_file(run_dir, 0), layouts, {"rank": 0, "after_update": 0})
    writer.append("updates", np.array([(1,) * len(old.names)], old))
    writer.close()
    write(run_dir, 0, 1, updates=update_rows(2, 3))
    updates = runs.open_run(run_dir).updates(0)
    assert updates["update"].tolist() == [1, 2, 3] and updates["torn"].tolist() == [-1, 0, 0]
    assert np.isnan(updates["rss"]).tolist() == [True, False, False]


def test_a_run_that_has_just_begun(tmp_path):
    run = runs.open_run(begin(tmp_path / "r"))
    assert (run.steps, run.hours, len(run.all_episodes()), len(run.problems)) == (0, 0.0, 0, 2)
    assert run.state == "0% done, metrics of 0 of 2 agents"


@pytest.mark.parametrize("damage", [cut, scribble, another_format])
def test_a_damaged_run_file_is_one_line(tmp_path, damage):
    run_dir = begin(tmp_path / "r")
    damage(run_dir / "run.h5")
    with pytest.raises(runs.RunError, match=r"run\.h5: cannot be read") as error:
        runs.open_run(run_dir)
    assert "\n" not in str(error.value)


def test_find_runs(tmp_path):
    for name in ("b", "a", "sweep/x", "sweep/deep/y"):
        begin(tmp_path / "all" / name)
    begin(tmp_path / "all" / "a" / "checkpoints" / "a run within a run is none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    found = ["a", "b", "sweep/deep/y", "sweep/x"]
    assert runs.find_runs([tmp_path / "all"]) == [tmp_path / "all" / name for name in found]
    again = [tmp_path / "all" / "b", str(tmp_path / "all"), tmp_path / "all" / "sweep" / ".." / "a"]
    assert runs.find_runs(again) == [tmp_path / "all" / name for name in ("b", "a", "sweep/deep/y", "sweep/x")]
    for name, seen in (("empty", "no run is there"), ("nope", "nothing is there"), ("file", "a file is there")):
        with pytest.raises(runs.RunError, match=f"{tmp_path / name}: {seen}"):
            runs.find_runs([tmp_path / "all", tmp_path / name])
    with pytest.raises(runs.RunError, match="empty: no run is there"):
        runs.open_run(tmp_path / "empty")


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
    """(x, mean, low, high, episodes, runs) of every bin with episodes."""
    of_runs = [slow_points(run_dir, axis) for run_dir in run_dirs]
    end = min(max(x for x, _ in points) for points in of_runs)
    fewest = min(sum(x <= end for x, _ in points) for points in of_runs)
    bins = max(10, min(100, fewest // 30))
    edges = np.linspace(0, end, bins + 1)
    curve = []
    for i in range(bins):
        inside = [
            [score for x, score in points if edges[i] <= x and (x < edges[i + 1] or (i == bins - 1 and x == end))]
            for points in of_runs
        ]
        values = [sum(scores) / len(scores) for scores in inside if scores]
        if not values:
            continue
        mean = sum(values) / len(values)
        low, high = min(values), max(values)
        if len(run_dirs) == 1:
            spread = math.sqrt(sum((score - mean) ** 2 for score in inside[0]) / len(inside[0]))
            low, high = mean - spread, mean + spread
        middle = (edges[i] + edges[i + 1]) / 2
        curve.append((middle, mean, low, high, sum(map(len, inside)), len(values)))
    return curve


def slow_windows(run_dir: Path) -> tuple[float, float, float]:
    scores = [score for _, score in sorted(slow_points(run_dir, "hours"), key=lambda point: point[0])]
    width = min(100, len(scores))
    means = [sum(scores[i : i + width]) / width for i in range(len(scores) - width + 1)]
    return means[0], max(means), means[-1]


@pytest.mark.parametrize("axis", ["steps", "hours"])
@pytest.mark.parametrize("sizes", [[(350, 100)], [(350, 100), (200, 80)], [(3, 100), (5, 60), (350, 100)]])
def test_curves_are_those_of_a_plain_loop(tmp_path, axis, sizes):
    run_dirs = [make(tmp_path / f"r{i}", i, number=number, last=last) for i, (number, last) in enumerate(sizes)]
    curve = learning_curves.curve([learning_curves.read(runs.open_run(path)) for path in run_dirs], axis)
    drawn = np.stack([curve.x, curve.mean, curve.low, curve.high, curve.episodes, curve.runs], axis=1)
    np.testing.assert_allclose(drawn, slow_curve(run_dirs, axis), rtol=1e-9)


def test_an_episode_on_an_edge_is_in_the_bin_that_begins_there():
    number, mean, spread = learning_curves.bin_scores(
        np.array([0.0, 1.0, 1.5, 4.0, 4.5]), np.array([1.0, 2.0, 4.0, 8.0, 16.0]), np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    )
    assert number.tolist() == [1, 2, 0, 1]  # what lies beyond the last edge is in none
    np.testing.assert_array_equal(mean, [1, 3, np.nan, 8])
    np.testing.assert_array_equal(spread, [0, 1, np.nan, 0])


def test_a_line_that_ends_before_a_run_of_its_group_is_remarked(tmp_path):
    make(tmp_path / "long", 0)
    make(tmp_path / "short", 1, last=30)
    [group] = learning_curves.grouped(learning_curves.load([str(tmp_path)]), ["exchange"])
    longest, shortest = (max(x for x, _ in slow_points(tmp_path / name, "steps")) for name in ("long", "short"))
    line = f"CartPole-v1 gossip: drawn to {shortest:,.4g} steps, where one run ends (the last: {longest:,.4g})"
    assert line in learning_curves.remarks([group])


@pytest.mark.parametrize("number", [1, 60, 350])
def test_windows_are_those_of_a_plain_loop(tmp_path, number):
    run_dir = make(tmp_path / "r", 0, agents=1, number=number)
    score = learning_curves.read(runs.open_run(run_dir)).score
    np.testing.assert_allclose(learning_curves.windows(score), slow_windows(run_dir))


def test_groups(tmp_path):
    a, b = {"env": "pong", "exchange": "gossip"}, {"env": "breakout", "exchange": "gossip"}
    c = {"env": "pong", "exchange": "none", "network": "gala"}
    for i, (settings, gae_lambda) in enumerate([(a, 1.0), (a, 0.95), (c, 1.0), (b, 1.0), (a, 10)]):
        make(tmp_path / f"{i}", i, number=5, **settings, a2c=A2CSettings(gae_lambda=gae_lambda))
    scores = learning_curves.load([str(tmp_path)])

    def groups(*by):
        return [
            (group.env, group.label, [int(s.run.path.name) for s in group.members])
            for group in learning_curves.grouped(scores, list(by))
        ]

    assert groups("exchange") == [("breakout", "gossip", [3]), ("pong", "gossip", [0, 1, 4]), ("pong", "none", [2])]
    assert groups("network")[1:] == [("pong", "network unset", [0, 1, 4]), ("pong", "gala", [2])]
    assert groups("env") == [("breakout", "breakout", [3]), ("pong", "pong", [0, 1, 2, 4])]
    assert [group.name for group in learning_curves.grouped(scores, ["env"])] == ["breakout", "pong"]
    assert groups("a2c.gae_lambda", "exchange") == [
        ("breakout", "a2c.gae_lambda 1.0, gossip", [3]),
        ("pong", "a2c.gae_lambda 0.95, gossip", [1]),
        ("pong", "a2c.gae_lambda 1.0, gossip", [0]),
        ("pong", "a2c.gae_lambda 1.0, none", [2]),
        ("pong", "a2c.gae_lambda 10, gossip", [4]),
    ]
    remarks = learning_curves.remarks(learning_curves.grouped(scores, ["exchange"]))
    assert any("pong gossip: averages runs that differ in a2c.gae_lambda (" in line for line in remarks)


# The command.


def command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    script = [sys.executable, str(ANALYSIS / "learning_curves.py"), *map(str, arguments)]
    return subprocess.run(script, cwd=cwd, capture_output=True, text=True)


def check_csv(path: Path, expected: dict[tuple[str, str], list[Path]]) -> None:
    """The CSV holds the slow curves of all groups: (env, label) → run directories."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert {(row["env"], row["group"]) for row in rows} == set(expected)
    for (env, label), run_dirs in expected.items():
        for axis in ("steps", "hours"):
            mine = [row for row in rows if (row["env"], row["group"], row["axis"]) == (env, label, axis)]
            numbers = [[float(row[name]) for name in ("x", "mean", "low", "high", "episodes", "runs")] for row in mine]
            np.testing.assert_allclose(numbers, slow_curve(run_dirs, axis), rtol=1e-9)


def test_the_command_on_one_run(tmp_path):
    run_dir = make(tmp_path / "r", 0)
    done = command("r", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    header, line, _, *written = done.stdout.splitlines()
    first, best, last = (f"{mean:.1f}" for mean in slow_windows(run_dir))
    assert header.split() == ["run", "group", "agents", "steps", "hours", "episodes", "first", "best", "last", "state"]
    assert line.split() == ["r", "CartPole-v1", "gossip", "2", "16,000", "2", "700", first, best, last, "finished"]
    assert written == ["r/learning_curve.png", "r/learning_curve.csv"]
    assert (run_dir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    check_csv(run_dir / "learning_curve.csv", {("CartPole-v1", "gossip"): [run_dir]})


def test_the_command_on_several_runs_some_of_them_broken(tmp_path):
    gossip = [make(tmp_path / "all" / f"g{seed}", seed) for seed in range(3)]
    alone = make(tmp_path / "all" / "n", 3, exchange="none", agents=1, last=50)
    other = make(tmp_path / "all" / "pong", 4, env="pong")
    begin(tmp_path / "all" / "new")
    begin(tmp_path / "all" / "torn")
    cut(tmp_path / "all" / "torn" / "run.h5")
    (other / "metrics" / "rank00001.h5").unlink()
    done = command("all", "--by", "exchange", "--out", "curves.svg", cwd=tmp_path)
    assert done.returncode == 0
    notes = done.stderr.splitlines()
    assert all(line.startswith("note: ") for line in notes)
    assert any("all/torn/run.h5: cannot be read" in line for line in notes)
    assert any("all/new: no finished episode" in line for line in notes)
    assert "note: all/pong/metrics/rank00001.h5: missing" in notes
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["all/g0", "all/g1", "all/g2", "all/n", "all/pong"]
    assert lines[4].endswith("  50% done") and lines[5].endswith("finished, metrics of 1 of 2 agents")
    edge = lines[0].index("episodes") + len("episodes")  # numbers are flush right
    assert all(line[edge - 1] != " " and line[edge] == " " for line in lines[:6])
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    (tmp_path / "all" / "pong" / "run.h5").unlink()  # its slow curve needs both ranks
    done = command("all", "--out", "curves.PDF", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "curves.PDF").read_bytes().startswith(b"%PDF")
    check_csv(tmp_path / "curves.csv", {("CartPole-v1", "gossip"): gossip, ("CartPole-v1", "none"): [alone]})


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["nope"], "nope: nothing is there; a run directory is expected"),
        (["run", "nope"], "nope: nothing is there"),
        (["empty"], "empty: no run is there (no run.h5); a run directory or a folder of runs is expected"),
        (["new"], "new: no finished episode is there; one or more is expected (and 2 more problems)"),
        (["torn"], "run.h5: cannot be read ("),
        (["run", "--by", "colour"], "--by colour: no such setting; one of a2c.clip_rewards, a2c.decay_lr"),
        (["run", "--by", "exchange,"], "--by : no such setting; one of"),
        (["run", "--out", "curves.txt"], "--out curves.txt: a file name that ends in .png, .pdf, .svg is expected"),
        (["run", "--out", "no/where.png"], "--out no/where.png: there is no folder no"),
        (["run", "--out", "folder.png"], "folder.png"),
        ([], "required: RUN"),
        (["run", "--colour"], "unrecognized arguments: --colour"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, arguments, said, monkeypatch, capsys):
    make(tmp_path / "run", 0)
    begin(tmp_path / "new")
    begin(tmp_path / "torn")
    cut(tmp_path / "torn" / "run.h5")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        learning_curves.main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and error.count("\n") == 1 and error.endswith("\n")


def test_bad_input_of_the_real_command(tmp_path):
    done = command("nope", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "learning_curves.py: nope: nothing is there; a run directory is expected\n"


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
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.parametrize("script", sorted(ANALYSIS.glob("*.py")), ids=lambda script: script.name)
def test_the_analysis_needs_nothing_of_the_training(script):
    done = without_training("imported", script)
    assert done.returncode == 0, done.stderr


def test_learning_curves_needs_nothing_of_the_training(tmp_path):
    run_dir = make(tmp_path / "r", 0)
    done = without_training("__main__", ANALYSIS / "learning_curves.py", run_dir)
    assert done.returncode == 0, done.stderr
    assert (run_dir / "learning_curve.png").exists()
