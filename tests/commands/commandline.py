"""Commands to start, and what a run directory holds afterwards."""

from __future__ import annotations

import re
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np

from gala_mpi.run import checkpoints, files, layout, reader
from launch import HANGS, Job, mpirun

TRAIN = ("-m", "gala_mpi.train")
# A game whose environments cost next to nothing.
SMALL = ("--env", "CartPole-v1", "--num-envs", 4, "--precision", "fp32")
STEPS_PER_UPDATE = 4 * 5
table = reader.read_rows


def train(n: int, run: Path, *flags: object, timeout: float = HANGS, status: int = 0) -> CompletedProcess:
    """Train to the end; the command must succeed, or end with `status`."""
    result = mpirun(n, *TRAIN, "--run-dir", run, *flags, timeout=timeout)
    assert result.returncode == status, result.stdout + result.stderr
    return result


def start(n: int, run: Path, *flags: object) -> Job:
    """Begin to train."""
    return Job(n, *TRAIN, "--run-dir", run, *flags)


def states(run: Path, n: int) -> list[checkpoints.State]:
    """What the newest complete checkpoint holds of each rank."""
    number = checkpoints.newest(run)
    assert number is not None, "there is no complete checkpoint"
    assert checkpoints.agents(run, number) == n
    return [checkpoints.load(run, number, rank) for rank in range(n)]


def parameters(run: Path, n: int) -> list[np.ndarray]:
    return [state.learner["parameters"] for state in states(run, n)]


def flushed(run: Path, rank: int) -> int:
    """The newest update that a reader of the rank's files sees."""
    newest = 0
    for path in layout.metrics_files(run, rank):
        with files.reading(path) as file:
            rows = file["updates"][: file["rows/updates"][()]]
            newest = max(newest, *rows["update"], 0) if len(rows) else newest
    return int(newest)


def assert_complete(run: Path, n: int, updates: int) -> None:
    """The ranks have done n times `updates` updates, each its share where they are in step, and have one row of each."""
    done = [int(state.learner["updates"]) for state in states(run, n)]
    assert done == [updates] * n if reader.read_config(run).in_step else sum(done) >= n * updates
    for rank, own in enumerate(done):
        assert table(run, rank, "updates")["update"].tolist() == list(range(1, own + 1))


def complaints(result: CompletedProcess) -> list[str]:
    """The lines in which the program itself says what is wrong."""
    return [line for line in result.stderr.splitlines() if line.startswith("gala_mpi:")]


def plain(text: str) -> bool:
    """No colours, no cursor movements."""
    return not re.search(r"\x1b", text)
