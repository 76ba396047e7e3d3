"""When a run wants to stop, and with which exit status it then ends."""

import math
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gala_mpi import errors
from gala_mpi.job import signals
from gala_mpi.job.signals import Stop


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    monkeypatch.setattr(signals, "_received", [])


def test_nobody_asks():
    asked = Stop(None, propagation_delay=0)
    assert not asked.requested(save_seconds=1e9) and asked.verdict == (errors.FINISHED, "")


@pytest.mark.parametrize("end", ["", "0", "1000000000", "UNLIMITED", "-1"])
def test_what_is_no_end_to_come_is_none(end):
    assert signals.seconds_of_job({"SLURM_JOB_END_TIME": end}) == math.inf
    assert signals.seconds_of_job({}) == math.inf


def job_ends_in(monkeypatch, seconds: float) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + seconds)))


def test_a_job_that_ends_late_goes_on(monkeypatch):
    job_ends_in(monkeypatch, 100)
    assert not Stop(None, propagation_delay=5).requested(save_seconds=10)


@pytest.mark.parametrize("left, save_seconds", [(25, 0), (100, 40)])
def test_a_job_stops_before_its_end_and_earlier_where_saving_takes_long(monkeypatch, left, save_seconds):
    job_ends_in(monkeypatch, left)
    asked = Stop(None, propagation_delay=0)
    assert asked.requested(save_seconds)
    assert asked.verdict[0] == errors.RESUME and asked.verdict[1].startswith("the job ends in ")


def test_a_job_stops_earlier_by_the_updates_until_all_have_stopped(monkeypatch):
    job_ends_in(monkeypatch, 40)
    asked, at_once = Stop(None, propagation_delay=1000), Stop(None, propagation_delay=1)
    time.sleep(0.05)
    assert asked.requested(0) and not at_once.requested(0)


def test_wall_time(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    asked = Stop(0.1 / 60, propagation_delay=0)
    assert not asked.requested(0)
    now[0] += 0.09
    assert not asked.requested(0)
    now[0] += 0.02
    assert asked.requested(0) and asked.verdict == (errors.RESUME, "0.00166667 minutes of wall time are over")


@pytest.mark.parametrize(
    "received, status",
    [(["SIGUSR1"], 75), (["SIGINT"], 130), (["SIGTERM"], 143), (["SIGUSR1", "SIGTERM"], 143), (["SIGTERM", "SIGUSR1"], 143)],
)
def test_the_signal_that_means_most_gives_the_status(received, status):
    before = {number: signal.getsignal(number) for number in signals.STATUS}
    try:
        signals.listen()
        asked = Stop(None, propagation_delay=0)
        for name in received:
            signal.raise_signal(signal.Signals[name])
        assert asked.requested(0) and asked.verdict[0] == status and asked.verdict[1] in received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


LATE = """
import builtins, os, signal
from gala_mpi.job import signals

class Late:
    def __del__(self):  # when nothing is left of the interpreter but this
        os.kill(os.getpid(), signal.SIGUSR1)

signals.listen()
builtins.late = Late()
signals.ignore_late_signals()
"""


def test_a_signal_after_the_end_does_not_kill():
    assert subprocess.run([sys.executable, "-c", LATE]).returncode == 0
