"""`python -m gala_mpi.watch`: what it says of runs in every state, from their files alone."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from commandline import SMALL, flushed, start, table, train
from gala_mpi import errors, watch
from gala_mpi.run import layout
from launch import HANGS, ROOT, environment

LONG = ("--total-steps", 100_000_000)
SHORT = (*SMALL, *LONG, "--wall-minutes", 0.01)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def command(*arguments: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=HANGS,
        **options,
    )


def age(run, seconds: float = 3600) -> None:
    """As if nothing had been written for so long."""
    for path in run.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


def test_finished(run):
    train(2, run, *SMALL, "--total-steps", 4000, "--staleness", 0)
    for value, expected in (("state", "finished"), ("steps", "4000"), ("idle_starts", "1")):
        assert command("-m", "gala_mpi.watch", run, "--value", value).stdout == f"{expected}\n"
    said = command("-m", "gala_mpi.watch", run).stdout  # once, since this is no terminal
    for words in ("finished", "2 on 1 host", "4,000 of 4,000 (100.0%)", "100 to 100", "1, update 100", "restarts  0"):
        assert words in said, said
    seen = watch.read_status(run)
    scores = [score for rank in range(2) for score in table(run, rank, "episodes")[["hours", "score"]].tolist()]
    newest = [score for _, score in sorted(scores, key=lambda row: row[0])][-100:]  # of one time: in the order of the file
    assert seen.score == pytest.approx(sum(newest) / len(newest))
    assert seen.rate > 0


def test_stopped_and_restarted(run):
    train(2, run, *SHORT, status=errors.RESUME)
    age(run, 0)
    assert watch.read_status(run).state == "running"  # as far as one can tell so soon
    age(run)
    seen = watch.read_status(run)
    assert seen.state == "stopped" and seen.silence == pytest.approx(3600, abs=60)
    assert seen.saved == {rank: len(table(run, rank, "updates")) for rank in range(2)}
    train(2, run, "--resume", status=errors.RESUME)
    assert (len(watch.read_status(run).starts), watch.read_status(run).idle_starts) == (2, 2)


def test_killed(run):
    with start(2, run, *SMALL, *LONG) as job:
        job.wait_until(lambda: all(flushed(run, rank) for rank in range(2)))
        job.wait_until(lambda: watch.read_status(run).state == "running")
        job.kill()
    age(run)
    seen = watch.read_status(run)
    assert (seen.state, seen.checkpoint) == ("stale", 0)
    assert seen.steps == sum(20 * flushed(run, rank) for rank in range(2))


def test_damaged_metrics_are_left_out_and_counted(run):
    train(2, run, *SMALL, "--total-steps", 4000, "--staleness", 0)
    (run / "metrics" / "rank00001.h5").write_bytes(b"no HDF5")
    assert "metrics of 1 of 2 agents can be read" in command("-m", "gala_mpi.watch", run).stdout
    assert watch.read_status(run).steps == 2000


def test_no_run(tmp_path):
    result = command("-m", "gala_mpi.watch", tmp_path)
    assert result.returncode == 2
    assert result.stderr == f"gala_mpi: run directory {tmp_path}: a run is expected there, but it has no run.h5\n"


def test_it_follows_a_live_run_on_a_terminal(run):
    with start(1, run, *SMALL, *LONG) as job:
        job.wait_until(lambda: layout.run_file(run).exists())
        terminal, other_end = pty.openpty()
        watching = [sys.executable, "-m", "gala_mpi.watch", run]
        terminals = {"stdout": other_end, "stderr": other_end, "env": environment() | {"TERM": "xterm"}}
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # which shells let background jobs ignore
        watcher = subprocess.Popen(watching, **terminals, preexec_fn=heed)
        os.close(other_end)
        said = ""
        while said.count("steps/s") < 3:
            said += os.read(terminal, 65536).decode(errors="replace")
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(HANGS) == 0
    assert "running" in said and "Traceback" not in said
    os.close(terminal)


def test_it_needs_neither_mpi_nor_torch(run):
    train(1, run, *SMALL, "--total-steps", 400)
    program = f"import sys; from gala_mpi import watch; watch.main([{str(run)!r}]); print(*sys.modules)"
    modules = set(command("-c", program).stdout.split())
    assert {"gala_mpi.watch", "h5py", "rich"} < modules
    assert not modules & {"mpi4py", "torch", "gymnasium", "ale_py"}
