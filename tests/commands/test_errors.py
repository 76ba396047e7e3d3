"""Failing well: bad input is one line and status 2, a broken rank ends the job and says where."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import h5py
import pytest

from launch import mpirun
from runs import SMALL, TRAIN, complaints, train

BROKEN_GAME = Path(__file__).with_name("broken_game.py")
OTHERS = ["gossip", "allreduce", "server", "none"]


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.mark.parametrize("exchange", OTHERS)
def test_an_error_on_one_rank_ends_the_job(run, exchange):
    flags = ("--env", "BrokenPole-v0", "--num-envs", 1, "--exchange", exchange, "--run-dir", run)
    began = time.monotonic()
    result = mpirun(3, BROKEN_GAME, *flags, timeout=60)
    assert time.monotonic() - began < 40
    assert result.returncode not in (0, 2)
    assert complaints(result) == [f"gala_mpi: rank 1 on {socket.gethostname()} failed; the job ends."]
    assert result.stderr.count("Traceback (most recent call last)") == 1
    assert result.stderr.count("ArithmeticError: the pole has broken") == 1


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below `folder`, with its size and the time of its last change."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def assert_refused(folder: Path, *flags: object) -> str:
    """The command ends at once with status 2 and one line, and leaves `folder` as it was; the line."""
    before = snapshot(folder)
    result = mpirun(2, *TRAIN, *flags, cwd=folder)
    said = result.stdout + result.stderr
    assert result.returncode == 2, said
    assert "Traceback" not in said
    assert snapshot(folder) == before
    (line,) = complaints(result)
    return line


BAD_VALUES = {
    "game": (("--env", "pongg"), "--env pongg: no such game", "did you mean pong"),
    "simulators": (("--num-envs", 0), "--num-envs 0", "1 or more"),
    "steps": (("--total-steps", 0), "--total-steps 0", "1 or more"),
    "rate": (("--lr", -1), "--lr -1", "positive"),
    "rate nan": (("--lr", "nan"), "--lr nan", "positive"),
    "discount": (("--a2c.discount", 2), "--a2c.discount 2", "0 to 1"),
    "bound": (("--exchange", "server", "--staleness", 1), "--staleness 1", "only with --exchange gossip"),
    "device": (("--device", "tpu"), "--device tpu", "cpu"),
    "network": (("--network", "nature"), "--network nature", "mlp is expected"),
}


@pytest.mark.parametrize("flags, *words", [pytest.param(*bad, id=name) for name, bad in BAD_VALUES.items()])
def test_bad_values_are_refused(tmp_path, flags, words):
    line = assert_refused(tmp_path, *SMALL, *flags)
    assert all(word in line for word in words), line
