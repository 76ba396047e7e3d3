"""Failing well: bad input is one line and status 2, a broken rank ends the job and says where."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from commandline import SMALL, TRAIN, complaints, train
from launch import HANGS, mpirun

BROKEN_GAME = Path(__file__).with_name("broken_game.py")


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.mark.parametrize("exchange", ["gossip", "allreduce"])
def test_an_error_on_one_rank_ends_the_job(run, exchange):
    flags = ("--env", "BrokenPole-v0", "--num-envs", 1, "--exchange", exchange, "--run-dir", run)
    result = mpirun(3, BROKEN_GAME, *flags)
    assert result.returncode not in (0, 2)
    assert complaints(result) == [f"gala_mpi: rank 1 on {socket.gethostname()} failed; the job ends."]
    assert result.stderr.count("Traceback (most recent call last)") == 1
    assert result.stderr.count("ArithmeticError: the pole has broken") == 1


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below `folder`, with its size and the time of its last change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def refused(folder: Path, *flags: object, ranks: int = 2) -> CompletedProcess:
    """The command ends at once with status 2 and leaves `folder` as it was."""
    before = snapshot(folder)
    result = mpirun(ranks, *TRAIN, *flags, cwd=folder)
    said = result.stdout + result.stderr
    assert result.returncode == 2, said
    assert "Traceback" not in said
    assert snapshot(folder) == before
    return result


def assert_refused(folder: Path, *flags: object, ranks: int = 2) -> str:
    """As `refused`, after one line of the program's own; the line."""
    (line,) = complaints(refused(folder, *flags, ranks=ranks))
    return line


BAD_VALUES = {  # more of them: tests/test_refusals.py
    "game": (("--env", "pongg"), "--env pongg: no such environment", "did you mean pong"),
    "exact": (
        ("--exchange", "server", "--exact-resume"),
        "--exact-resume: agents of --exchange server do not wait for each other",
        "--staleness 0, --exchange allreduce, --exchange periodic or one rank is expected",
    ),
    "memory": (("--env", "pong", "--num-envs", 1_000_000, "--precision", "auto"), "memory on ", "--num-envs"),
}


@pytest.mark.parametrize("flags, start, allowed", BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values_are_refused(tmp_path, flags, start, allowed):
    line = assert_refused(tmp_path, *SMALL, *flags)
    assert line.startswith(f"gala_mpi: {start}") and allowed in line


def test_an_unknown_flag_is_refused(tmp_path):
    result = refused(tmp_path, *SMALL, "--no-such-flag", 1)
    assert (result.stdout + result.stderr).count("no-such-flag") >= 1


@pytest.mark.parametrize("run", [pytest.param("/dev/null/run", marks=pytest.mark.long), "/proc/run"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, run):
    line = assert_refused(tmp_path, *SMALL, "--run-dir", run)
    assert "--run-dir" in line and "cannot be written" in line


def test_a_directory_that_exists_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    line = assert_refused(tmp_path, *SMALL, "--run-dir", "run")
    assert "--run-dir run exists" in line and "--resume" in line


def test_a_graph_that_is_wrong_or_of_another_size_is_refused(tmp_path):
    graph = tmp_path / "my.txt"
    graph.write_text("0 1\n1 2\n2 0\n")
    line = assert_refused(tmp_path, *SMALL, "--topology", "my.txt")
    assert line == "gala_mpi: --topology my.txt: a graph of 3 agents, but there are 2; as many are expected"


def test_bounds_that_might_wait_in_a_circle_are_refused(tmp_path):
    flags = ("--max-lag", 5, "--staleness", 1, "--topology", "one-peer-exponential")
    line = assert_refused(tmp_path, *SMALL, *flags, ranks=3)
    assert line.startswith(f"gala_mpi: {flags[0]} 5 --staleness 1 --topology one-peer-exponential: agents might wait")
    assert "a graph that is the same at every update is expected" in line


def test_resume_of_something_else_is_refused(tmp_path):
    """Of another network: what else does not fit is in tests/test_refusals.py."""
    train(2, tmp_path / "run", *SMALL, "--total-steps", 400)
    assert "--network gala" in assert_refused(tmp_path, "--resume", "--run-dir", "run", "--network", "gala")


@pytest.mark.parametrize(
    "command", ["topology ring -n 32", "topology ring -n 32 --json", "topology --help", "train --help", "watch RUN"]
)
def test_a_reader_that_leaves_is_no_error(tmp_path, command):
    """`| head`: here the reader has left before anything is written."""
    program, *arguments = command.replace("RUN", str(tmp_path / "run")).split()
    if program == "watch":
        train(1, tmp_path / "run", *SMALL, "--total-steps", 200)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", f"gala_mpi.{program}", *arguments]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=buffered, timeout=HANGS)
    os.close(writing)
    assert done.stderr == "" and done.returncode == 0
