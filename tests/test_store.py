"""Files: tables that are read while they are written and after a kill, files that appear whole or not at all."""

import errno
import mmap
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from gala_mpi.clock import SECTIONS
from gala_mpi.config import A2CSettings, Config
from gala_mpi.envs.base import Episode, Spaces
from gala_mpi.errors import DiskError
from gala_mpi.exchange.base import Counters, Mix
from gala_mpi.learners.a2c import A2C
from gala_mpi.learners.base import Losses
from gala_mpi.networks.policy import Network
from gala_mpi.record import recorder
from gala_mpi.record.recorder import Recorder, Update
from gala_mpi.run import files, layout, reader, tables, writer
from gala_mpi.run.files import write_at
from gala_mpi.run.tables import SIZE, TABLES

ROW = np.dtype([("index", "<i8"), ("square", "<f8"), ("flag", "<i4")])
ROOT = Path(__file__).parents[1]


def rows(begin: int, end: int) -> np.ndarray:
    """Row i is a function of i."""
    return np.array([(i, i * i, -i) for i in range(begin, end)], ROW)


def new_tables(path: Path, room: int = 100) -> tables.Tables:
    return tables.Tables(path, {"numbers": (ROW, room), "others": (ROW, 10)}, {"rank": 3})


def visible(path: Path, name: str = "numbers") -> np.ndarray:
    """The rows that a reader sees with plain h5py."""
    with h5py.File(path, "r") as file:
        return file[name][: file[f"rows/{name}"][()]]


def start(script: str, *arguments: object) -> subprocess.Popen:
    """A Python process of its own that knows this package."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)


# Tables


def test_rows_are_read_while_the_writer_has_the_file_open(tmp_path):
    tables = new_tables(tmp_path / "t.h5")
    assert len(visible(tmp_path / "t.h5")) == 0
    tables.append("numbers", rows(0, 7))
    assert np.array_equal(visible(tmp_path / "t.h5"), rows(0, 7))
    with h5py.File(tmp_path / "t.h5", "r"):  # a reader does not stop the writer
        tables.append("numbers", rows(7, 9))
    tables.append("others", rows(0, 2))
    assert np.array_equal(visible(tmp_path / "t.h5"), rows(0, 9))
    assert np.array_equal(visible(tmp_path / "t.h5", "others"), rows(0, 2))
    tables.sync()
    tables.close()
    assert np.array_equal(visible(tmp_path / "t.h5"), rows(0, 9))


def test_rows_are_seen_only_when_the_counter_has_been_written(tmp_path, monkeypatch):
    """The last write of an append is the counter's: without it the reader sees the old number of rows."""
    tables = new_tables(tmp_path / "t.h5")
    tables.append("numbers", rows(0, 3))
    write = write_at
    monkeypatch.setattr("gala_mpi.run.tables.write_at", lambda file, data, offset: len(data) > 8 and write(file, data, offset))
    tables.append("numbers", rows(3, 5))
    assert np.array_equal(visible(tmp_path / "t.h5"), rows(0, 3))
    with h5py.File(tmp_path / "t.h5", "r") as file:
        assert np.array_equal(file["numbers"][:5], rows(0, 5))


def test_room_counts_down_and_a_full_table_takes_no_more(tmp_path):
    tables = new_tables(tmp_path / "t.h5", room=5)
    tables.append("numbers", rows(0, 3))
    assert (tables.room("numbers"), tables.room("others")) == (2, 10)
    with pytest.raises(AssertionError):
        tables.append("numbers", rows(3, 6))
    tables.append("numbers", rows(3, 5))
    tables.append("numbers", rows(5, 5))
    assert tables.room("numbers") == 0
    assert np.array_equal(visible(tmp_path / "t.h5"), rows(0, 5))
    assert len(visible(tmp_path / "t.h5", "others")) == 0


def test_attributes_say_what_the_file_is(tmp_path):
    new_tables(tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5", "r") as file:
        assert dict(file.attrs) == {"format": layout.FORMAT, "rank": 3}


def test_an_existing_file_is_never_overwritten(tmp_path):
    new_tables(tmp_path / "t.h5").append("numbers", rows(0, 3))
    with pytest.raises(FileExistsError):
        new_tables(tmp_path / "t.h5")
    assert np.array_equal(visible(tmp_path / "t.h5"), rows(0, 3))


def test_room_takes_no_space_on_the_disk_until_it_is_used(tmp_path):
    tables = new_tables(tmp_path / "t.h5", room=1_000_000)
    status = os.stat(tmp_path / "t.h5")
    assert status.st_size > 1_000_000 * ROW.itemsize
    assert status.st_blocks * 512 < 100_000
    tables.append("numbers", rows(0, 10_000))
    assert os.stat(tmp_path / "t.h5").st_blocks * 512 < 100_000 + 2 * 10_000 * ROW.itemsize


WRITER = """
import sys
from pathlib import Path
import numpy as np
from gala_mpi.run import files, tables
dtype = np.dtype([("index", "<i8"), ("square", "<f8"), ("flag", "<i4")])
tables = tables.Tables(Path(sys.argv[1]), {"numbers": (dtype, 4_000_000)}, {})
written = 0
print("ready", flush=True)
while True:
    more = 1 + written % 7
    tables.append("numbers", np.array([(i, i * i, -i) for i in range(written, written + more)], dtype))
    written += more
"""


def test_a_writer_killed_at_any_instant_leaves_whole_rows_that_are_right(tmp_path):
    instants = random.Random(0)
    for attempt in range(6):
        path = tmp_path / f"{attempt}.h5"
        writer = start(WRITER, path)
        assert writer.stdout.readline() == "ready\n"
        while attempt % 2 and not len(visible(path)):  # else also before the first row
            time.sleep(0.001)
        time.sleep(instants.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        seen = visible(path)
        assert np.array_equal(seen, rows(0, len(seen)))
        with h5py.File(path, "r") as file:  # at most one append lies beyond the counter; then the hole begins
            assert not file["numbers"][len(seen) + 7 : len(seen) + 1000].tobytes().strip(b"\0")
    assert len(seen) > 0


# Atomic files


def numbers_in(path: Path) -> list[int]:
    with h5py.File(path, "r") as file:
        return list(file["numbers"])


def test_an_atomic_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a.h5"
    for value in (1, 2):
        with files.atomic(path) as file:
            file["numbers"] = [value]
            assert path.exists() == (value == 2)
    assert numbers_in(path) == [2]
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("existed", [False, True])
def test_an_error_in_the_block_leaves_everything_as_it_was(tmp_path, existed):
    path = tmp_path / "a.h5"
    if existed:
        with files.atomic(path) as file:
            file["numbers"] = [1]
    with pytest.raises(ZeroDivisionError), files.atomic(path) as file:
        file["numbers"] = [1 / 0]
    assert os.listdir(tmp_path) == ["a.h5"] * existed
    assert not existed or numbers_in(path) == [1]


KILLED = """
import os, signal, sys
from pathlib import Path
from gala_mpi.run import files
with files.atomic(Path(sys.argv[1])) as file:
    file["numbers"] = [2] * 100_000
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("existed", [False, True])
def test_a_process_killed_in_the_block_leaves_the_old_file_and_no_new_one(tmp_path, existed):
    path = tmp_path / "a.h5"
    if existed:
        with files.atomic(path) as file:
            file["numbers"] = [1]
    assert start(KILLED, path).wait() == -signal.SIGKILL
    assert [file.name for file in tmp_path.glob("*.h5") if not file.name.startswith(".")] == ["a.h5"] * existed
    assert not existed or numbers_in(path) == [1]
    with files.atomic(path) as file:  # what was left behind is in nobody's way
        file["numbers"] = [3]
    assert numbers_in(path) == [3]


# run.h5


def test_a_revision_keeps_attributes_groups_and_links(tmp_path):
    path = tmp_path / "run.h5"
    with files.atomic(path) as file:
        file.attrs.update({"name": "é", "number": 7, "list": ["a", "b"]})
        file.create_dataset("group/inner/data", data=np.arange(5)).attrs["unit"] = "steps"
        file["group"].attrs["of"] = "things"
        file["links/outside"] = h5py.ExternalLink("missing.h5", "/")
    with files.revised(path) as file:
        file.attrs["number"] = 8
        file["new"] = 1
    with h5py.File(path, "r") as file:
        assert (file.attrs["name"], file.attrs["number"], list(file.attrs["list"])) == ("é", 8, ["a", "b"])
        assert list(file["group/inner/data"]) == [0, 1, 2, 3, 4]
        assert (file["group/inner/data"].attrs["unit"], file["group"].attrs["of"]) == ("steps", "things")
        link = file.get("links/outside", getlink=True)
        assert isinstance(link, h5py.ExternalLink) and (link.filename, link.path) == ("missing.h5", "/")
        assert sorted(file) == ["group", "links", "new"]


def add_evaluations(run, first):
    for k in range(first, first + 10):
        writer.write_evaluation(run, np.zeros(1, [("score", "<f4")]), {"k": k})


def test_no_evaluation_of_several_at_once_is_lost(tmp_path):
    with files.atomic(layout.run_file(tmp_path)) as file:
        file.attrs["format"] = 1
    both = [multiprocessing.get_context("fork").Process(target=add_evaluations, args=(tmp_path, first)) for first in (0, 10)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    with files.reading(layout.run_file(tmp_path)) as file:
        assert sorted(int(each.attrs["k"]) for each in file["evaluations"].values()) == [*range(20)]


def test_an_error_while_revising_leaves_the_old_file(tmp_path):
    path = tmp_path / "run.h5"
    with files.atomic(path) as file:
        file["numbers"] = [1]
    with pytest.raises(ZeroDivisionError), files.revised(path) as file:
        del file["numbers"]
        1 / 0  # noqa: B018
    assert numbers_in(path) == [1]


def test_a_run_remembers_every_start(tmp_path):
    first, second = Config(seed=1), Config(seed=2)
    writer.write_run(tmp_path / "run", first, 2, {"hosts": ["a", "b"]})
    assert (reader.read_config(tmp_path / "run"), reader.read_agents(tmp_path / "run")) == (first, 2)
    writer.write_run(tmp_path / "run", second, 2, {"hosts": ["c", "d"]})
    assert reader.read_config(tmp_path / "run") == second
    with h5py.File(layout.run_file(tmp_path / "run"), "r") as file:
        starts = file["starts"]
        assert [Config.from_json(starts[str(i)].attrs["config"]) for i in range(2)] == [first, second]
        assert [list(starts[str(i)].attrs["hosts"]) for i in range(2)] == [["a", "b"], ["c", "d"]]


def test_a_run_leads_to_the_tables_of_every_rank(tmp_path):
    run = tmp_path / "run"
    writer.write_run(run, Config(), 2, {})
    for rank in range(2):
        new_tables(layout.next_metrics_file(run, rank)).append("numbers", rows(0, rank + 4))
    with h5py.File(layout.run_file(run), "r") as file:
        assert [int(file[f"metrics/rank{rank:05d}/rows/numbers"][()]) for rank in range(2)] == [4, 5]


def test_metrics_files_of_a_rank_are_numbered_in_the_order_of_their_writing(tmp_path):
    (tmp_path / "metrics").mkdir()
    written = []
    for _ in range(12):  # "-10" follows "-9"
        written.append(layout.next_metrics_file(tmp_path, 7))
        new_tables(written[-1], room=1)
    new_tables(layout.next_metrics_file(tmp_path, 70), room=1)
    assert len(set(written)) == 12
    assert layout.metrics_files(tmp_path, 7) == written
    assert len(layout.metrics_files(tmp_path, 70)) == 1
    assert layout.metrics_files(tmp_path, 0) == []


# Recorder


SKETCH_UPDATES = 3


def mixes_of(update: int) -> list[Mix]:
    return [Mix(1, update - 1, 0.25), Mix(2, update - 3, 1 / 3)][: update % 3]


class Writer:
    """One rank's Recorder, with updates that are functions of their number."""

    def __init__(self, run: Path, update: int = 0, updates: int = 1000, rank: int = 0):
        (run / "metrics").mkdir(parents=True, exist_ok=True)
        self.learner = A2C(Network("mlp", Spaces((2,), False, 2)), A2CSettings(), 1e-3)
        self.learner.updates = update
        self.metrics = Recorder(run, rank, update, updates, 2, sketch_updates=SKETCH_UPDATES, hours=2.0)

    def record(self, count: int) -> None:
        for _ in range(count):
            self.learner.updates += 1
            update = self.learner.updates
            self.learner.steps = 80 * update
            episodes = [Episode(i, 10.0 * update + i, 100 + i) for i in range(update % 3)]
            mixes = mixes_of(update)
            counters = Counters(mixes, staleness=update % 5, torn=2, progress_gap=0.5)
            sketches = [np.full(SIZE, float(update + i)) for i in range(2)] if update % SKETCH_UPDATES == 0 else []
            seconds = {section: i + update for i, section in enumerate(SECTIONS)}
            done = Update(Losses(0.1 * update, 2.0, 3.0), 4.0, 0.0, episodes, sketches)
            self.metrics.record(self.learner, 160 * update, done, counters, seconds)


def test_there_is_room_for_more_mixes_than_the_graph_has(tmp_path):
    """In place of a lost peer all are read whom it read."""
    writer = Writer(tmp_path, updates=6)
    writer.metrics._peers = 0
    writer.metrics._open(0)
    writer.record(6)
    writer.metrics.flush()
    assert len(read(tmp_path, "mixes")) == sum(len(mixes_of(update)) for update in range(1, 7)) > 0
    assert read(tmp_path, "updates")["update"].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_sketch_at_every_update_takes_no_gigabytes(tmp_path):
    (tmp_path / "metrics").mkdir()
    metrics = Recorder(tmp_path, 0, 0, 10**6, 1, sketch_updates=1, hours=0.0)
    assert metrics._tables.room("sketches") * TABLES["sketches"].itemsize < 2**26


def read(run: Path, name: str, rank: int = 0) -> np.ndarray:
    return np.concatenate([visible(path, name) for path in layout.metrics_files(run, rank)])


def assert_nothing_lost(run: Path, updates: int) -> None:
    """Every row of updates 1 to `updates` is there, once, in order, with what `Writer` gave it."""
    found, episodes, mixes = (read(run, name) for name in ("updates", "episodes", "mixes"))
    every = range(1, updates + 1)
    assert found["update"].tolist() == list(every)
    assert found["steps"].tolist() == [80 * update for update in every]
    assert found["run_steps"].tolist() == [160 * update for update in every]
    assert np.allclose(found["policy_loss"], [0.1 * update for update in every])
    assert found["staleness"].tolist() == [update % 5 for update in every]
    ages = [[np.nan, 1, 2][update % 3] for update in every]
    assert np.array_equal(found["age"], ages, equal_nan=True)
    assert [[row[section] for section in SECTIONS] for row in found] == [[i + u for i in range(6)] for u in every]
    expected = [(u, 80 * u, 160 * u, i, 100 + i, 10.0 * u + i) for u in every for i in range(u % 3)]
    assert [row.item() for row in episodes[["update", "steps", "run_steps", "simulator", "length", "score"]]] == expected
    assert [row.item() for row in mixes] == [(u, *mix) for u in every for mix in mixes_of(u)]
    sketches = read(run, "sketches")
    assert sketches["update"].tolist() == [u for u in every if u % SKETCH_UPDATES == 0]
    assert (sketches["gradient"] == sketches["update"][:, None]).all()
    assert (sketches["parameters"] == sketches["update"][:, None] + 1).all()


def test_a_closed_file_has_every_row(tmp_path):
    writer = Writer(tmp_path)
    writer.record(50)
    writer.metrics.close()
    assert_nothing_lost(tmp_path, 50)
    assert len(layout.metrics_files(tmp_path, 0)) == 1
    hours = read(tmp_path, "updates")["hours"]
    assert (np.diff(hours) >= 0).all() and hours[0] > 2 and hours[-1] < 2.1


def test_rows_wait_until_they_are_flushed(tmp_path):
    writer = Writer(tmp_path)
    writer.record(5)
    assert len(read(tmp_path, "updates")) == 0
    writer.metrics.flush()
    assert_nothing_lost(tmp_path, 5)


def test_rows_do_not_wait_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "SECONDS_BETWEEN_WRITES", 0.0)
    writer = Writer(tmp_path)
    writer.record(5)
    assert_nothing_lost(tmp_path, 5)


@pytest.mark.parametrize("between_flushes", [1, 3, 8])
def test_the_next_file_begins_when_one_is_full(tmp_path, monkeypatch, between_flushes):
    monkeypatch.setattr(recorder, "ROOM", 8)
    writer = Writer(tmp_path)
    for _ in range(50):
        writer.record(between_flushes)
        writer.metrics.flush()
    writer.metrics.close()
    assert_nothing_lost(tmp_path, 50 * between_flushes)
    files = layout.metrics_files(tmp_path, 0)
    assert len(files) >= 50 * between_flushes / 8
    for file in files:  # a file says after which update it begins
        with h5py.File(file, "r") as opened:
            assert opened["updates"][0]["update"] == opened.attrs["after_update"] + 1


def test_a_new_file_begins_after_a_restart(tmp_path):
    Writer(tmp_path, updates=60).record(3)  # killed before it wrote: these rows are gone
    first = Writer(tmp_path, updates=60)
    first.record(20)
    first.metrics.sync()
    second = Writer(tmp_path, update=20, updates=40)
    second.record(40)
    second.metrics.close()
    assert_nothing_lost(tmp_path, 60)
    with h5py.File(layout.metrics_files(tmp_path, 0)[-1], "r") as file:
        assert file.attrs["after_update"] == 20


def test_a_file_has_no_more_room_than_the_run_needs(tmp_path):
    Writer(tmp_path, update=5, updates=7)
    with h5py.File(layout.metrics_files(tmp_path, 0)[0], "r") as file:
        assert file["updates"].shape == (7,) and file["mixes"].shape == (14,) and file["sketches"].shape == (3,)


def test_ranks_have_files_of_their_own(tmp_path):
    for rank in range(2):
        writer = Writer(tmp_path, rank=rank)
        writer.record(3 + rank)
        writer.metrics.close()
    assert [len(read(tmp_path, "updates", rank)) for rank in range(2)] == [3, 4]


def test_resident_memory_grows_with_what_is_held():
    """By a mapping of its own: an allocation may find memory that this process has already."""
    before = recorder.resident_mib()
    with mmap.mmap(-1, 64 * 2**20) as held:
        held.write(b"1" * len(held))
        assert recorder.resident_mib() - before > 50
    assert recorder.resident_mib() - before < 50


HOLDS = """
import sys
from pathlib import Path
from gala_mpi.run import files

with files.revised(Path(sys.argv[1])) as file:
    file.attrs["held"] = 1
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_is_changed_by_one_process_at_a_time(tmp_path, monkeypatch):
    """Another one waits, a minute at most, and then finds what the first has added."""
    path = tmp_path / "run.h5"
    command = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin and holder.stdout and holder.stdout.readline() == "held\n"
        monkeypatch.setattr(files, "SECONDS_TO_CHANGE", 0.1)
        words = r"run\.h5 cannot be written: another process has held .*\.run\.h5\.lock for 0 s"
        with pytest.raises(DiskError, match=words), files.revised(path):
            pytest.fail("it did not wait")
        monkeypatch.undo()
        threading.Timer(0.2, holder.stdin.close).start()
        with files.revised(path) as file:
            file.attrs["added"] = 2
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"held": 1, "added": 2}


def test_where_nothing_can_be_locked_files_are_changed_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    with files.revised(tmp_path / "run.h5") as file:
        file.attrs["added"] = 1
    assert (tmp_path / "run.h5").exists()
