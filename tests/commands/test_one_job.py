"""One job at a time trains in a run directory; directories that nobody names are distinct."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from commandline import SMALL, TRAIN, complaints, start, train
from gala_mpi import errors
from gala_mpi.run import checkpoints, lock
from launch import Job, mpirun

LONG = ("--total-steps", 100_000_000)
HOST = socket.gethostname()


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def test_a_run_that_trains_is_not_resumed(run):
    """Nor through a symbolic link, nor begun anew. Its files stay as they are; once it is killed, the next job goes on."""
    (run.parent / "link").symlink_to(run)
    with start(2, run, *SMALL, *LONG, "--checkpoint-minutes", 0.01, "--keep-checkpoints", 1000) as job:
        job.wait_until(lambda: checkpoints.newest(run))
        first = job.ranks()[0]
        for path in (run, run.parent / "link"):
            result = mpirun(2, *TRAIN, "--resume", "--run-dir", path)
            assert result.returncode == errors.REFUSED, result.stderr
            (said,) = complaints(result)
            assert said.startswith(f"gala_mpi: --run-dir {path}: a job trains there (process {first} on {HOST}, since ")
        assert not list(run.glob("metrics/*-1.h5"))
        job.kill()
    newest = checkpoints.newest(run)
    assert f"resumed from checkpoint {newest}" in train(2, run, "--resume", "--total-steps", 400).stdout


def test_who_may_survive_rank_0_holds_the_lock_with_it(run):
    with start(2, run, *SMALL, *LONG, "--survive", 120) as job:
        job.wait_until(lambda: (run / ".lock").exists() and set(holders(run)) == set(job.ranks()))


def holders(run) -> list[int]:
    """The processes that have a lock of the run."""
    inode = (run / ".lock").stat().st_ino
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return [int(pid) for _, kind, _, _, pid, file, *_ in locks if kind == "POSIX" and file.endswith(f":{inode}")]


@pytest.mark.parametrize("beats", [True, False])
def test_a_holder_on_another_host_counts_as_long_as_it_is_seen(run, monkeypatch, beats):
    """Where locks are of one host only, its beats show it."""
    run.mkdir()
    file = run / ".lock"
    file.write_text(json.dumps({"host": "n017", "pid": 4711, "job": "123", "since": "2026-01-01 00:00:00"}))
    monkeypatch.setattr(lock, "SECONDS_TO_WATCH", 3.0)
    now = [time.time()]
    monkeypatch.setattr(lock, "_last_beat", lambda path: int(1e9 * (now.append(now[-1] + beats) or now[-1])))
    if beats:
        with pytest.raises(errors.SettingError, match="process 4711 on n017, Slurm job 123, since 2026-01-01"):
            lock.take(run)
        assert json.loads(file.read_text())["host"] == "n017"
    else:
        lock.take(run)
        assert json.loads(file.read_text())["pid"] == os.getpid()
        lock.release()
        assert file.read_text() == ""


def test_where_there_are_no_locks_a_process_that_lives_counts(run, monkeypatch):
    run.mkdir()
    monkeypatch.setattr(lock.fcntl, "lockf", lambda *_: (_ for _ in ()).throw(OSError(lock.errno.ENOLCK, "no locks")))
    with subprocess.Popen(["sleep", "1000"]) as other:
        text = json.dumps({"host": HOST, "pid": other.pid, "job": "", "since": "now"})
        (run / ".lock").write_text(text)
        with pytest.raises(errors.SettingError, match=f"process {other.pid} on"):
            lock.take(run)
        other.kill()
    (run / ".lock").write_text(text)
    lock.take(run)
    lock.release()


@pytest.mark.parametrize("text", ["5", "[1]", '"x"', '{"pid": 1}', "{", "null"])
def test_what_says_of_no_holder_holds_nothing(run, text):
    run.mkdir()
    (run / ".lock").write_text(text)
    lock.take(run)
    assert json.loads((run / ".lock").read_text())["pid"] == os.getpid()
    lock.release()


def test_four_starts_at_once_have_directories_of_their_own(tmp_path):
    with ExitStack() as stack:
        flags = (*SMALL, "--total-steps", 400)
        jobs = [stack.enter_context(Job(1, "-c", FROZEN, *flags, cwd=tmp_path)) for _ in range(4)]
        ended = [job.wait() for job in jobs]
    assert [result.returncode for result in ended] == [0] * 4, [result.stderr for result in ended]
    places = sorted(re.findall(r"finished: (\S+)", "".join(result.stdout for result in ended)))
    name = "runs/CartPole-v1-gossip-20260101-000000"
    assert places == [name, f"{name}-2", f"{name}-3", f"{name}-4"]


FROZEN = """
import sys, time
from gala_mpi import train
time.strftime = lambda *_: "20260101-000000"  # the same second for all
train.main(sys.argv[1:])
"""
