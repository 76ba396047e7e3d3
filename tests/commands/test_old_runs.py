"""Runs of an older version (tests/old_runs): whatever code comes later resumes, evaluates, watches, analyses and replays them.

By the commands and the files that a user sees alone, so that no change inside the program touches this test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess

import h5py
import numpy as np
import pytest

from commandline import states
from launch import HANGS, ROOT, environment, mpirun

OLD = ROOT / "tests" / "old_runs"
AGENTS = {"gossip": 2, "file": 3, "allreduce": 2, "hierarchical": 2}
STEPS_PER_UPDATE = 4 * 5
# Training whose small layers are multiplied as when the old runs were made: numpy computes them since.
AS_THEN = """
import runpy
from gala_mpi.rollout import kernels
kernels.SMALL = 0
runpy.run_module("gala_mpi.train", run_name="__main__")
"""
SURPLUS = 6  # updates of each rank, at most, while word spreads that all is done


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """All the old runs, to be read and not to be changed."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD / "runs.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.2 has none yet
        archive.extractall(folder)
    return folder


@pytest.fixture
def old(tmp_path):
    """Of a run's name, the run itself, to do with as one likes."""

    def unpack(name: str) -> Path:
        with tarfile.open(OLD / "runs.tar.xz") as archive:
            members = [member for member in archive if member.name.startswith(f"{name}/")]
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(tmp_path, members)
        return tmp_path / name

    return unpack


def start(n: int, program: str, *arguments: object) -> CompletedProcess:
    """`mpirun -n n python -m gala_mpi.program arguments...`, on so many cores at most."""
    return started(n, "-m", f"gala_mpi.{program}", *arguments)


def started(n: int, *words: object) -> CompletedProcess:
    """`mpirun -n n python words...`, on so many cores at most: a rank has one thread, as then."""
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(mine)[:n])
    try:
        return mpirun(n, *words)
    finally:
        os.sched_setaffinity(0, mine)


def command(n: int, program: str, *arguments: object) -> CompletedProcess:
    """As `start`; it must succeed."""
    result = start(n, program, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def alone(*arguments: object) -> str:
    """What `python arguments...` prints; it must succeed."""
    words = [sys.executable, *map(str, arguments)]
    result = subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=HANGS)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def watched(run: Path, value: str) -> str:
    return alone("-m", "gala_mpi.watch", run, "--value", value).strip()


def files(run: Path) -> dict[Path, bytes]:
    """Everything that is never changed once it is written."""
    return {path: path.read_bytes() for kind in ("metrics", "checkpoints") for path in (run / kind).rglob("*.h5")}


def evaluations(run: Path) -> list[np.ndarray]:
    with h5py.File(run / "run.h5", locking=False) as file:
        group = file.get("evaluations", {})
        return [group[number][()] for number in sorted(group, key=int)]


@pytest.mark.parametrize("n", [2, pytest.param(1, marks=pytest.mark.long), 3])
def test_a_run_that_was_stopped_is_finished(old, n):
    """Also by fewer agents and by more."""
    run = old("gossip")
    before, steps = files(run), int(watched(run, "steps"))
    assert 0 < steps < 8000
    said = command(n, "train", "--resume", "--run-dir", run).stdout
    assert re.search(rf"resumed from checkpoint 2 in \S+ at {steps:,} steps", said), said
    assert f"finished: {run}" in said
    assert watched(run, "state") == "finished"
    assert 8000 <= int(watched(run, "steps")) < 8000 + SURPLUS * n * STEPS_PER_UPDATE
    after = files(run)
    assert before.items() <= after.items()
    assert {path.name for path in after.keys() - before.keys()} >= {"rank00000-2.h5", "rank00000.h5"}
    assert len(evaluations(run)) == 1


@pytest.mark.parametrize(
    "name, n",
    [
        ("hierarchical", 3),
        *(pytest.param("allreduce", n, marks=pytest.mark.long) for n in (2, 3)),
        pytest.param("hierarchical", 2, marks=pytest.mark.long),
    ],
)
def test_a_finished_run_does_more(old, name, n):
    run = old(name)
    assert watched(run, "steps") == "1600"
    said = command(n, "train", "--resume", "--run-dir", run, "--total-steps", 1600 + n * 30 * STEPS_PER_UPDATE).stdout
    assert re.search(r"resumed from checkpoint 1 in \S+ at 1,600 steps", said) and f"finished: {run}" in said
    more = int(watched(run, "steps")) - (1600 + n * 30 * STEPS_PER_UPDATE)
    assert more == 0 if name == "allreduce" else 0 <= more < SURPLUS * n * STEPS_PER_UPDATE


def test_a_run_without_a_checkpoint_begins_anew_on_its_graph(old):
    """Its settings hold the graph's text: the file is long gone."""
    run = old("file")
    before = files(run)
    said = command(3, "train", "--resume", "--run-dir", run).stdout
    assert "graph.txt graph, 3 agents" in said and "resumed from" not in said and f"finished: {run}" in said
    assert before.items() <= files(run).items()
    assert sum(int(state.learner["updates"]) for state in states(run, 3)) >= 3 * 40
    peers = ({1}, {2}, {0, 1})
    for rank in range(3):
        with h5py.File(run / "metrics" / f"rank{rank:05d}-1.h5", locking=False) as file:
            rows = file["mixes"][: file["rows/mixes"][()]]
            assert {*rows["peer"]} <= peers[rank]


@pytest.mark.parametrize(
    "name, n",
    [
        ("gossip", 2),
        *(pytest.param(name, n, marks=pytest.mark.long) for name, n in (("gossip", 1), ("allreduce", 2), ("hierarchical", 1))),
    ],
)
def test_an_old_run_is_evaluated(old, name, n):
    run = old(name)
    before = evaluations(run)
    said = command(n, "evaluate", run, "--episodes", 3).stdout
    assert all(policy in said for policy in ("agent 0", "agent 1", "mean of all agents"))
    *others, newest = evaluations(run)
    assert len(others) == len(before) and all(map(np.array_equal, others, before))
    assert {(row["policy"], row["game"]) for row in newest} == {(policy, game) for policy in (-1, 0, 1) for game in range(3)}
    assert (newest["score"] >= 8).all()


@pytest.mark.long
def test_an_older_checkpoint_is_evaluated(old):
    run = old("gossip")
    assert "checkpoint 1, 2 games" in command(1, "evaluate", run, "--checkpoint", 1, "--episodes", 2).stdout


WATCHED = {
    "gossip": ("stopped", "8,000", "2, update", "restarts  1"),
    "file": ("finished", "2,400 of 2,400 (100.0%)", "none yet", "3 on 1 host"),
    "allreduce": ("finished", "1,600 of 1,600 (100.0%)", "1, update 40", "restarts  0"),
    "hierarchical": ("finished", "1,600 of 1,600 (100.0%)", "1, update 40", "2 on 1 host"),
}


@pytest.mark.parametrize("name", AGENTS)
def test_an_old_run_is_watched(unpacked, name):
    said = alone("-m", "gala_mpi.watch", unpacked / name, "--once")
    assert all(words in said for words in WATCHED[name]), said
    assert "can be read" not in said


def test_values_of_an_old_run(unpacked):
    values = {value: watched(unpacked / "gossip", value) for value in ("state", "steps", "rate", "score", "idle_starts")}
    assert values["state"] == "stopped" and 0 < int(values["steps"]) < 8000 and values["idle_starts"] == "2"
    assert float(values["rate"]) > 0 and float(values["score"]) > 0


def test_old_runs_are_on_a_report(unpacked, tmp_path):
    page = tmp_path / "report.html"
    said = alone("analysis/report.py", unpacked, "--out", page)
    shown = page.read_text()
    assert all(name in shown for name in AGENTS), said
    assert "cannot be read (" not in said + shown
    assert shown.count("<svg") >= 5


SCRIPTS = {
    "learning_curves": ("gossip", "file", "allreduce", "hierarchical"),
    "staleness": ("gossip", "file", "hierarchical"),
    "consensus": ("file",),
    "gradients": ("file",),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_old_runs_are_analysed(unpacked, tmp_path, script):
    picture = tmp_path / "picture.png"
    runs = [unpacked / name for name in SCRIPTS[script]]
    said = alone(f"analysis/{script}.py", *runs, "--out", picture)
    assert "cannot be read" not in said
    assert picture.stat().st_size > 5000 and len(picture.with_suffix(".csv").read_text().splitlines()) > 1


def test_old_runs_are_exported(unpacked, tmp_path):
    alone("analysis/export.py", unpacked, "--to", tmp_path / "exported")
    with h5py.File(unpacked / "file" / "metrics" / "rank00002.h5", locking=False) as file:
        mixes = int(file["rows/mixes"][()])
    (table,) = (tmp_path / "exported").rglob("file/rank00002/mixes.csv")
    assert len(table.read_text().splitlines()) == 1 + mixes


def test_a_record_is_replayed(old, tmp_path):
    """Bit for bit where the arithmetic is in the order of then; else it ends by saying from where it differs."""
    run, again = old("file"), tmp_path / "again"
    result = start(3, "train", "--replay", run, "--run-dir", again)
    if result.returncode == 0:
        assert f"replayed: {again}" in result.stdout and f"that of {run}, bit for bit" in result.stdout
    else:
        assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
        assert re.search(rf"^gala_mpi: rank \d differs from {run} from update \d+ on$", result.stderr, re.MULTILINE)
    for rank in range(3):  # whoever was mixed then is mixed now
        then, now = (path / "metrics" / f"rank{rank:05d}.h5" for path in (run, again))
        with h5py.File(then, locking=False) as recorded, h5py.File(now, locking=False) as replayed:
            rows = int(recorded["rows/mixes"][()])
            assert replayed["rows/mixes"][()] == rows > 20 and replayed["rows/updates"][()] == 40
            assert (recorded["mixes"][:rows] == replayed["mixes"][:rows]).all()


def test_a_record_is_replayed_bit_for_bit_by_the_arithmetic_of_then(old, tmp_path):
    """With the same packages on the same kind of processor: whatever else has changed since gives the same numbers."""
    run, again = old("file"), tmp_path / "again"
    if not same_packages(run) or processor() != (OLD / "processor.txt").read_text():
        pytest.skip("the record was made with other packages, or on another kind of processor")
    result = started(3, "-c", AS_THEN, "--replay", run, "--run-dir", again)
    assert result.returncode == 0, result.stderr
    assert f"that of {run}, bit for bit" in result.stdout


def test_what_cannot_be_replayed_is_refused(old, tmp_path):
    result = start(2, "train", "--replay", old("gossip"), "--run-dir", tmp_path / "again")
    assert result.returncode == 2 and "the run was started 2 times" in result.stderr


def same_packages(run: Path) -> bool:
    """Whether the run's packages are those that are installed."""
    with h5py.File(run / "run.h5", locking=False) as file:
        packages = [line.split() for line in file["starts/0"].attrs["packages"]]
    return all(version(package) == then for package, then in packages)


def processor() -> str:
    """Its kind, and what of it arithmetic may depend on."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    facts = {name.strip(): value.strip() for name, _, value in lines}
    wide = sorted(flag for flag in facts.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    kind = " ".join(facts.get(name, "?") for name in ("vendor_id", "cpu family", "model"))
    return f"{kind}\n{' '.join(wide)}\n"
