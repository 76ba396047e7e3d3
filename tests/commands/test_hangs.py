"""A rank that hangs is named by those who wait for it, ends the job where it is told to, and Ctrl-C works."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

import launch
from commandline import complaints, flushed
from gala_mpi import errors
from launch import Job, mpirun

SLEEPY = Path(__file__).with_name("sleepy_pole.py")
HOST = socket.gethostname()
POLE = ("--env", "SleepyPole-v0", "--num-envs", 1, "--precision", "fp32")
EXCHANGES = ("gossip", "allreduce", "periodic", "server", "none")
LONG = pytest.mark.long
MINUTES = 0.25  # more than any update takes on a busy machine


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def names_rank_1(text: str) -> list[str]:
    """The lines of those who have waited for rank 1."""
    return re.findall(rf"gala_mpi: rank \d+ on {HOST} at update \d+ has waited \d+ s for rank 1 on {HOST}[,\n]", text)


@pytest.mark.parametrize("exchange", ["gossip", "allreduce", *(pytest.param(name, marks=LONG) for name in EXCHANGES[2:])])
@pytest.mark.parametrize("n", [2, pytest.param(4, marks=LONG)])
def test_who_waits_says_for_whom_and_insisting_ends_the_job(run, n, exchange):
    """Gossip waits at its end, as does A3C; the others at once. The second Ctrl-C ends what the first does not."""
    flags = ("--exchange", exchange, "--total-steps", 200 * n)
    with Job(n, SLEEPY, "python", *POLE, "--run-dir", run, *flags) as job:
        job.wait_until(lambda: names_rank_1(job.stderr))
        while job.launcher.poll() is None:
            for rank in job.ranks():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank, signal.SIGINT)
            time.sleep(1)
        ended = job.wait()
    said = complaints(ended)
    assert ended.returncode == 128 + signal.SIGINT, ended.stderr
    waited = [line for line in said if "has waited" in line]
    assert all(line.split(" s for ")[1].startswith(f"rank 1 on {HOST}") for line in waited), waited
    assert all(" and " not in line and line.count("rank") == 2 for line in waited), waited
    assert len([line for line in said if f"another SIGINT on {HOST}" in line]) == 1, said


@pytest.mark.parametrize(
    "n, exchange", [(2, "gossip"), pytest.param(2, "allreduce", marks=LONG), pytest.param(4, "server", marks=LONG)]
)
def test_a_rank_that_hangs_ends_the_job_and_says_where_it_stands(run, n, exchange):
    flags = ("--exchange", exchange, "--total-steps", 100_000_000, "--hang-minutes", MINUTES)
    ended = mpirun(n, SLEEPY, "python", *POLE, "--run-dir", run, *flags)
    assert ended.returncode == errors.FAILED, ended.stderr
    (said,) = [line for line in complaints(ended) if "has waited" not in line]
    update = re.search(rf"rank 1 on {HOST} has made no update for {MINUTES} minutes .*the last one was update (\d+);", said)
    assert update and int(update[1]) == 9
    assert 'sleepy_pole.py", line' in ended.stderr and "in step" in ended.stderr
    assert "has waited" not in ended.stderr or names_rank_1(ended.stderr)


@pytest.mark.long
@pytest.mark.parametrize("exchange", ["gossip"])
def test_a_rank_that_hangs_in_c_shows_its_stacks(run, exchange):
    """Where Python's lock is kept no thread of Python can speak."""
    flags = ("--exchange", exchange, "--total-steps", 100_000_000, "--hang-minutes", MINUTES)
    ended = mpirun(2, SLEEPY, "c", *POLE, "--run-dir", run, *flags)
    assert ended.returncode in (errors.FAILED, signal.SIGKILL), ended.stderr  # MPICH's launcher takes the status of any rank
    assert "Timeout (" in ended.stderr and 'sleepy_pole.py", line' in ended.stderr


@pytest.mark.parametrize("exchange", ["gossip", pytest.param("allreduce", marks=LONG)])
def test_a_rank_that_cannot_speak_ends_the_job(run, exchange):
    """By the word of another, which waits for it (all-reduce) or goes on training (gossip)."""
    flags = ("--exchange", exchange, "--total-steps", 100_000_000, "--hang-minutes", MINUTES)
    with Job(2, SLEEPY, "python", *POLE, "--run-dir", run, *flags) as job:
        job.wait_until(lambda: flushed(run, 0) > 9 if exchange == "gossip" else names_rank_1(job.stderr))
        os.kill(job.ranks()[1], signal.SIGSTOP)
        ended = job.wait()
    assert ended.returncode == errors.FAILED
    (said,) = [line for line in complaints(ended) if "has waited" not in line]
    assert re.search(rf"rank 0 on {HOST}: rank 1 on {HOST}, seen at update \d+, has made no update for \d\.\d minutes", said), (
        said
    )
    assert not launch.OPEN_MPI or "Traceback" not in ended.stderr
