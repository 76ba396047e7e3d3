"""Reading run directories that the project's own writers made, in whatever state."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from recorded import METADATA, ROOM, ROOT, STEPS, begin, cut, episode_rows, make, mix_rows, scribble, update_rows, write

from gala_mpi.config import A2CSettings, Config
from gala_mpi.record.recorder import Update
from gala_mpi.run import RunError, find_runs, layout, open_run, parts, reader, tables, writer
from gala_mpi.run.tables import TABLES


def test_the_reference_is_made_of_the_code():
    from gala_mpi import evaluate, topology
    from gala_mpi.record import provenance
    from gala_mpi.run import columns_doc

    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page == columns_doc.page(), "python -m gala_mpi.run.columns_doc > docs/metrics.md"
    metadata = provenance.metadata(topology.build(topology.Graph("ring"), 4), "MPI", ["a"], [1], 0)
    assert {*metadata, "config"} == set(columns_doc.METADATA)
    for name in evaluate.GAMES.names:
        assert f"`{name}`" in page


def test_a_run_knows_its_commit():
    from gala_mpi.record import provenance

    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert provenance.metadata(None, "MPI", ["a"], [1], 0)["commit"] == head


def test_the_reference_s_examples_run(tmp_path):
    """Those whose packages are here; h5dump as well."""
    make(tmp_path / "runs" / "pong", 0)
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "metrics.md").read_text(), re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        packages = {"pandas", "xarray"} & set(re.findall(r"\w+", example))
        if all(importlib.util.find_spec(package) for package in packages):
            subprocess.run([sys.executable, "-c", example], cwd=tmp_path, check=True)
    if shutil.which("h5dump"):
        subprocess.run(["h5dump", "-d", "/updates", "-c", "3", "runs/pong/metrics/rank00000.h5"], cwd=tmp_path, check=True)


def test_settings_are_of_words_and_numbers_and_those_of_old_runs_have_what_they_lacked(tmp_path):
    run = open_run(begin(tmp_path / "r", wrappers=("TimeLimit:5", "mine:wrap")))
    assert run.settings()["wrappers"] == "TimeLimit:5 mine:wrap"
    for name in ("env_workers", "wrappers"):  # which there were not always
        del run.config[name]
    assert (run.settings()["env_workers"], run.settings()["wrappers"]) == (0, "")


def test_a_run_reads_back_as_written(tmp_path):
    random = np.random.default_rng(0)
    run_dir = begin(tmp_path / "r", exchange="allreduce", a2c=A2CSettings(gae_lambda=0.95))
    written = [episode_rows(random, 30 + rank) for rank in range(2)]
    for rank in range(2):
        write(run_dir, rank, 0, updates=update_rows(1, 100), episodes=written[rank], mixes=mix_rows(1, 50))
    run = open_run(run_dir)
    assert run.agents == 2 and run.config["exchange"] == "allreduce" and run.config["a2c"]["gae_lambda"] == 0.95
    assert run.starts == [METADATA | {"config": run.config}]
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
    run = open_run(run_dir)
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


def test_steps_are_those_that_all_agents_had_done(tmp_path):
    """A slow agent's episode is drawn where the run was, not where it had heard that it was, nor where all would have been."""
    run_dir, random = begin(tmp_path / "r", agents=2), np.random.default_rng(3)
    expected = []
    for rank, speed in enumerate((9, 1)):
        rows, episodes = update_rows(1, 10 * speed), episode_rows(random, 20, 10 * speed)
        for table in (rows, episodes):
            table["hours"] = table["update"] / 50 / speed
            table["run_steps"] = 10 * STEPS * (table["update"] - 1) // speed  # as it had heard an update before
        expected += (10 * STEPS * episodes["update"] / speed).tolist()
        write(run_dir, rank, 0, 2, updates=rows, episodes=episodes)
    assert sorted(open_run(run_dir).scores["steps"]) == pytest.approx(sorted(expected))


def test_steps_are_of_the_agents_that_there_were(tmp_path):
    """Four agents for 50 updates, then two."""
    run_dir = begin(tmp_path / "r", agents=2)
    random = np.random.default_rng(3)
    for rank in range(4):
        write(run_dir, rank, 0, 4, updates=update_rows(1, 60), episodes=episode_rows(random, 40, 60))
    for rank in range(2):
        write(run_dir, rank, 50, 2, updates=update_rows(51, 100), episodes=episode_rows(random, 40, 100, 51))
    run = open_run(run_dir)
    for rank in range(2):
        agents = [4] * 50 + [2] * 50
        assert run.agents_at(rank, run.updates(rank)["update"]).tolist() == agents
    for rank in range(2, 4):  # who has left since; what they did after the checkpoint was done again without them
        assert run.updates(rank)["update"].tolist() == list(range(1, 51))
    expected = [e["steps"] * (4 if e["update"] <= 50 else 2) for rank in range(4) for e in run.episodes(rank)]
    assert sorted(run.scores["steps"]) == sorted(expected)
    assert set(run.all_episodes()["rank"]) == {0, 1, 2, 3} and run.problems == []
    for rank in range(6):  # and six from update 90 on
        write(run_dir, rank, 90, 6, updates=update_rows(91, 100))
    writer.write_run(run_dir, Config(env="CartPole-v1", total_steps=100, rollout_length=5), 6, METADATA)
    run = open_run(run_dir)
    assert run.updates(3)["update"].tolist() == [*range(1, 51), *range(91, 101)]
    assert run.agents_at(0, np.array([50, 51, 90, 91])).tolist() == [4, 2, 2, 6]


def test_who_left_before_the_first_checkpoint_counts_no_more(tmp_path):
    """Four agents were killed before they had saved, and two began anew from the same update; then again four."""
    run_dir = begin(tmp_path / "r", agents=2)
    for agents, last in ((4, 30), (2, 20)):
        for rank in range(agents):
            write(run_dir, rank, 0, agents, updates=update_rows(1, last))
    run = open_run(run_dir)
    assert [len(run.updates(rank)) for rank in range(4)] == [20, 20, 0, 0]
    assert [len(reader.read_rows(run_dir, rank, "updates")) for rank in range(4)] == [20, 20, 0, 0]
    for rank in range(4):
        write(run_dir, rank, 20, 4, updates=update_rows(21, 25))
    run = open_run(run_dir)
    assert [len(run.updates(rank)) for rank in range(4)] == [25, 25, 5, 5]


def random_run(path: Path, seed: int) -> Path:
    """A run with starts of 2 to 5 agents that go on from some earlier update, in parts of their own lengths."""
    random = np.random.default_rng(seed)
    at, agents = 0, 4
    for start in range(6):
        if start and random.random() < 0.5:
            agents = int(random.integers(2, 6))
        for rank in range(agents):
            last = at + int(random.integers(0, 40))
            episodes = episode_rows(random, 25, last, at + 1) if last > at else None
            tables = {} if episodes is None else {"episodes": episodes, "mixes": mix_rows(at + 1, last)}
            write(path, rank, at, agents, updates=update_rows(at + 1, last), **tables)
        begin(path, agents)
        at += int(random.integers(0, 25))
    return path


@pytest.mark.parametrize("seed", range(8))
def test_all_readers_agree_which_rows_count(tmp_path, seed):
    run_dir = random_run(begin(tmp_path / "r"), seed)
    run, ends = open_run(run_dir), parts.NewestRows(run_dir)
    for rank in range(run.agents):
        tables = {name: run._table(rank, name) for name in ("updates", "episodes", "mixes")}
        for name, rows in tables.items():
            np.testing.assert_array_equal(reader.read_rows(run_dir, rank, name), rows)
        for count in (1, 7, 1000):
            newest = ends.of(rank, dict.fromkeys(tables, count))
            for name, rows in tables.items():
                np.testing.assert_array_equal(newest[name], rows[-count:])
        np.testing.assert_array_equal(run._newest(rank), tables["updates"][-1:])


def test_the_ends_of_large_tables_are_read_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("recorded.ROOM", 5000)
    run_dir = begin(tmp_path / "r", agents=1)
    write(run_dir, 0, 0, updates=update_rows(1, 5000), mixes=mix_rows(1, 5000))
    write(run_dir, 0, 4900, updates=update_rows(4901, 4950))
    read, with_columns = [], parts.with_columns
    monkeypatch.setattr(parts, "with_columns", lambda rows, table: read.append(len(rows)) or with_columns(rows, table))
    newest = parts.NewestRows(run_dir).of(0, {"updates": 100}, {"mixes": 100})
    assert newest["updates"]["update"].tolist() == list(range(4851, 4951))
    assert newest["mixes"]["update"].tolist() == list(range(4801, 4901))
    assert sum(read) < 1000
    read.clear()
    assert open_run(run_dir).steps == 4950 * STEPS and sum(read) < 100


def test_the_end_of_a_table_without_its_last_rows(tmp_path):
    """As after a power cut."""
    run_dir = begin(tmp_path / "r", agents=1)
    file = write(run_dir, 0, 0, updates=update_rows(1, 20))
    with h5py.File(file, "r+", locking=False) as opened:
        opened["rows/updates"][()] = 60
    assert parts.NewestRows(run_dir).of(0, {"updates": 3})["updates"]["update"].tolist() == [18, 19, 20]
    assert open_run(run_dir).newest["update"].tolist() == [20]


@pytest.mark.parametrize("stored", ["ring", {"name": "ring", "text": "", "nodes": []}])
def test_a_graph_in_the_settings_of_old_and_new_runs(tmp_path, stored):
    run = open_run(begin(tmp_path / "r"))
    run.config["topology"] = stored
    assert run.settings()["topology"] == "ring" and run.settings()["method"] == "GALA ring"


def test_sticky_actions_of_old_and_new_runs_are_one_setting(tmp_path):
    for name, old, new in (("a", 0.0, None), ("b", 0.25, 0.25)):
        run = open_run(begin(tmp_path / name))
        assert run.settings()["atari.sticky"] is None
        run.config["atari"] = {**run.config["atari"], "sticky": new}
        was = {name: value for name, value in run.config.items() if name != "atari"} | {"sticky": old}
        expected = run.settings()["atari.sticky"]
        run.config.clear()
        run.config.update(was)
        assert run.settings()["atari.sticky"] == expected == new and "sticky" not in run.settings()


@pytest.mark.parametrize(
    "old, new",
    [
        ("g.txt\n0 1\n1 0\n", {"name": "g.txt", "text": "0 1\n1 0\n", "nodes": []}),
        ("hierarchical:2\n0 0 1", {"name": "hierarchical:2", "text": "", "nodes": [0, 0, 1]}),
    ],
)
def test_the_same_graph_of_old_and_new_runs_is_one_setting(tmp_path, old, new):
    runs = [open_run(begin(tmp_path / name)) for name in "ab"]
    runs[0].config["topology"], runs[1].config["topology"] = old, new
    assert runs[0].settings() == runs[1].settings()


def test_files_by_the_writer_of_the_training(tmp_path, monkeypatch):
    """`Recorder` itself: a file that gets full, a kill, and a resume at an earlier update."""
    from gala_mpi.exchange.base import Mix
    from gala_mpi.record import recorder
    from gala_mpi.record.energy import Meter

    monkeypatch.setattr(recorder, "ROOM", 8)
    monkeypatch.setattr(recorder, "SECONDS_BETWEEN_READINGS", 0.0)
    losses = SimpleNamespace(policy=0.0, value=0.0, entropy=1.0, kl=0.01, clip_share=0.1, rho=0.9)

    def record(tables, update, score):
        learner = SimpleNamespace(updates=update, steps=update * STEPS)
        counters = SimpleNamespace(mixes=[Mix(1, update - 1, 0.5)], staleness=0, torn=0, corrupt=0, progress_gap=0.0, lag=None)
        episode = SimpleNamespace(environment=0, length=5, score=score)
        done, seconds = Update(losses, 0.1, 0.1, [episode], []), dict.fromkeys(recorder.SECTIONS, 0.0)
        tables.record(learner, 3 * learner.steps, done, counters, seconds)
        tables.flush()

    run_dir = begin(tmp_path / "r", agents=1)
    first = recorder.Recorder(run_dir, 0, update=0, updates=100, peers=1, sketch_updates=0, hours=0.0, meter=Meter())
    for update in range(1, 13):
        record(first, update, score=1)
    second = recorder.Recorder(run_dir, 0, update=10, updates=90, peers=1, sketch_updates=0, hours=0.5)
    for update in range(11, 15):
        record(second, update, score=2)
    run = open_run(run_dir)
    assert len(run.parts[0]) == 3
    for part in run.parts[0]:
        with h5py.File(part.path) as file:
            assert {name: file[name].dtype for name in TABLES} == TABLES and file.attrs["format"] == layout.FORMAT
    for table in (run.updates(0), run.episodes(0), run.mixes(0)):
        assert table["update"].tolist() == list(range(1, 15))
    assert run.episodes(0)["score"].tolist() == [1] * 10 + [2] * 4
    assert run.updates(0)["hours"][-1] > 0.5 and run.problems == []
    energy = run.energy(0)
    assert energy["update"].tolist() == list(range(1, 11))  # the second start had no meter
    assert (energy["seconds"] >= 0).all() and (run.updates(0)["cpu"] >= 0).all()


def test_rows_beyond_the_counter_mean_nothing(tmp_path):
    """A live run: the writer is between the rows and the counter."""
    run_dir = begin(tmp_path / "r", agents=1)
    file = write(run_dir, 0, 0, updates=update_rows(1, 20), episodes=episode_rows(np.random.default_rng(2), 5, 20))
    with h5py.File(file, "r+", locking=False) as opened:
        for name, rows in (("updates", 20), ("episodes", 5), ("mixes", 0)):
            opened[name][rows : rows + 3] = np.frombuffer(b"\x7f" * 3 * opened[name].dtype.itemsize, opened[name].dtype)
    run = open_run(run_dir)
    assert [len(table(0)) for table in (run.updates, run.episodes, run.mixes)] == [20, 5, 0]
    np.testing.assert_array_equal(run.updates(0), update_rows(1, 20))
    assert run.state == "20% done" and run.problems == []


def test_a_run_stays_what_it_was_when_it_was_opened(tmp_path):
    run_dir = begin(tmp_path / "r", agents=1)
    file = write(run_dir, 0, 0, updates=update_rows(1, 20))
    run = open_run(run_dir)
    with h5py.File(file, "r+", locking=False) as opened:
        opened["updates"][20:30] = update_rows(21, 30)
        opened["rows/updates"][()] = 30
    assert len(run.updates(0)) == 20
    assert len(open_run(run_dir).updates(0)) == 30


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
    run = open_run(run_dir)
    assert len(run.updates(0)) == len(run.updates(0)) == read
    assert f"{file}: {problem}" in run.problems and len(run.problems) == len(set(run.problems))


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
    whole = open_run(run_dir)
    file = run_dir / "metrics" / "rank00001.h5"
    damage(file)
    run = open_run(run_dir)
    assert [len(run.episodes(rank)) for rank in range(3)] == [350, 0, 350]
    assert len(run.updates(1)) == 0 and run.updates(1).dtype == TABLES["updates"]
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
    run = open_run(run_dir)
    assert run.problems == [f"{run_dir}/metrics/rank00000-1.h5: missing", f"{run_dir}/metrics/rank00001.h5: missing"]
    assert run.updates(0)["update"].tolist() == [*range(1, 11), *range(21, 31)]
    assert run.state == "40% done, metrics of 2 of 3 agents"


def test_many_files_are_in_the_order_of_their_numbers(tmp_path):
    run_dir = begin(tmp_path / "r", agents=1)
    for after in range(12):
        write(run_dir, 0, after, updates=update_rows(after + 1, after + 1))
    assert open_run(run_dir).updates(0)["update"].tolist() == list(range(1, 13))


def test_a_column_that_a_file_lacks(tmp_path):
    run_dir = begin(tmp_path / "r", agents=1)
    new = TABLES["updates"]
    old = np.dtype([(name, new[name]) for name in new.names if name not in ("rss", "torn")])
    layouts = {name: (dtype, ROOM) for name, dtype in (TABLES | {"updates": old}).items()}
    writer = tables.Tables(layout.next_metrics_file(run_dir, 0), layouts, {"rank": 0, "after_update": 0})
    writer.append("updates", np.array([(1,) * len(old.names)], old))
    writer.close()
    write(run_dir, 0, 1, updates=update_rows(2, 3))
    updates = open_run(run_dir).updates(0)
    assert updates["update"].tolist() == [1, 2, 3] and updates["torn"].tolist() == [-1, 0, 0]
    assert np.isnan(updates["rss"]).tolist() == [True, False, False]


def test_a_run_that_has_just_begun(tmp_path):
    run = open_run(begin(tmp_path / "r"))
    assert (run.steps, run.hours, len(run.all_episodes()), len(run.problems)) == (0, 0.0, 0, 2)
    assert run.state == "0% done, metrics of 0 of 2 agents"


@pytest.mark.parametrize("damage", [cut, scribble, another_format])
def test_a_damaged_run_file_is_one_line(tmp_path, damage):
    run_dir = begin(tmp_path / "r")
    damage(run_dir / "run.h5")
    with pytest.raises(RunError, match=r"run\.h5: cannot be read") as error:
        open_run(run_dir)
    assert "\n" not in str(error.value)


def test_find_runs(tmp_path):
    for name in ("b", "a", "sweep/x", "sweep/deep/y"):
        begin(tmp_path / "all" / name)
    begin(tmp_path / "all" / "a" / "checkpoints" / "a run within a run is none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    found = ["a", "b", "sweep/deep/y", "sweep/x"]
    assert find_runs([tmp_path / "all"]) == [tmp_path / "all" / name for name in found]
    again = [tmp_path / "all" / "b", str(tmp_path / "all"), tmp_path / "all" / "sweep" / ".." / "a"]
    assert find_runs(again) == [tmp_path / "all" / name for name in ("b", "a", "sweep/deep/y", "sweep/x")]
    for name, seen in (("empty", "no run is there"), ("nope", "nothing is there"), ("file", "a file is there")):
        with pytest.raises(RunError, match=f"{tmp_path / name}: {seen}"):
            find_runs([tmp_path / "all", tmp_path / name])
    with pytest.raises(RunError, match="empty: no run is there"):
        open_run(tmp_path / "empty")
