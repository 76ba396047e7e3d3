"""When a run wants to stop, and with which exit status it then ends."""

import math
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from gala_mpi import errors, pulse
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


def test_a_reason_of_the_programs_own_counts_less_than_a_signal(monkeypatch):
    asked = Stop(None, propagation_delay=0)
    asked.ask("")
    assert not asked.requested(0)
    asked.ask("good enough")
    assert asked.requested(0) and asked.verdict == (errors.RESUME, "good enough")
    monkeypatch.setattr(signals, "_received", [signal.SIGTERM])
    assert asked.verdict == (143, "SIGTERM")


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
    [
        *((["SIGUSR1"], 75), (["SIGUSR2"], 75), (["SIGHUP"], 129), (["SIGINT"], 130), (["SIGTERM"], 143)),
        *((["SIGUSR1", "SIGTERM"], 143), (["SIGTERM", "SIGUSR1"], 143), (["SIGHUP", "SIGUSR2"], 129)),
    ],
)
def test_the_signal_that_means_most_gives_the_status(received, status):
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it may have been ignored when the tests were started
    before = [signal.getsignal(number) for number in signals.STATUS]
    with signals.listening():
        asked = Stop(None, propagation_delay=0)
        for name in received:
            signal.raise_signal(signal.Signals[name])
        assert asked.requested(0) and asked.verdict[0] == status and asked.verdict[1] in received
    assert [signal.getsignal(number) for number in signals.STATUS] == before
    assert signal.set_wakeup_fd(-1) == -1 and not signals._received
    signal.signal(signal.SIGHUP, hangup)


FORKED = """
import multiprocessing, os, signal, time
from gala_mpi.job import signals

def sleep(pipe):
    pipe.send([signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGHUP, signal.SIGTERM)])
    time.sleep(1000)

signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
signals.listen()
os.kill(os.getpid(), signal.SIGTERM)
here, there = multiprocessing.Pipe()
worker = multiprocessing.get_context("fork").Process(target=sleep, args=(there,))
worker.start()
print(here.recv())
worker.terminate()
worker.join()
print(worker.exitcode == -signal.SIGTERM, signals.Stop(None, 0).verdict[1])
"""


def test_a_forked_worker_heeds_signals_as_if_nobody_listened():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["[True, False]", "True SIGTERM"], done.stderr


LATE = """
import builtins, os, signal
from gala_mpi.job import signals

class Late:
    def __del__(self):  # when nothing is left of the interpreter but this
        os.kill(os.getpid(), signal.{name})

signals.listen()
builtins.late = Late()
signals.ignore_late_signals()
"""


@pytest.mark.parametrize("number", signals.STATUS)
def test_a_signal_after_the_end_does_not_kill(number):
    assert subprocess.run([sys.executable, "-c", LATE.format(name=number.name)]).returncode == 0


def insist(*times: float, worked: float = 0.0, saving: bool = False, monkeypatch) -> list[bool]:
    """Which of the requests that come at these times end the job at once; the rank's last update was at `worked`."""
    monkeypatch.setattr(pulse, "worked", worked)
    monkeypatch.setattr(pulse, "saving", saving)
    insistence = signals.Insistence()
    return [insistence.heed(time) for time in times]


@pytest.mark.parametrize(
    "times, how, ends",
    [
        ((10.0, 10.1, 12.9), {}, [False, False, False]),  # launcher and terminal: one request
        ((10.0, 14.0), {}, [False, True]),  # nothing done since: it hangs
        ((10.0, 10.1, 14.0), {}, [False, False, True]),
        ((10.0, 14.0, 18.0), {"worked": 13.0}, [False, False, True]),  # it is on its way to its checkpoint
        ((10.0, 14.0, 15.0, 18.0), {"saving": True}, [False, False, False, True]),
    ],
)
def test_who_insists_gets_an_end_at_once(times, how, ends, monkeypatch):
    assert insist(*times, **how, monkeypatch=monkeypatch) == ends


STUCK = """
import ctypes, signal, sys, time
from gala_mpi.job import signals

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever started the tests may have had it ignored, as nohup does
signals.SECONDS_OF_ONE_REQUEST = 0.0
signals.listen()
print("listens", flush=True)
{wait}
"""


IN_C = "mutex = ctypes.create_string_buffer(64); [ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in range(2)]"


@pytest.mark.parametrize("wait", ["time.sleep(1000)", IN_C], ids=["in Python", "in C"])
@pytest.mark.parametrize("number", signals.FOR_GOOD)
def test_a_main_thread_that_does_not_return_is_ended(wait, number):
    """Not even from C, where Python's handlers wait."""
    command = [sys.executable, "-c", STUCK.format(wait=wait)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as rank:
        rank.stdout.readline()
        while rank.poll() is None:
            rank.send_signal(number)
            time.sleep(0.1)
        said = rank.stderr.read().decode()
    assert rank.returncode == 128 + number
    assert said.count(f"gala_mpi: another {number.name} on ") == 1, said


def test_a_handler_that_an_environment_has_replaced_is_put_back(monkeypatch):
    before = signal.getsignal(signal.SIGUSR1)
    monkeypatch.setattr(signals, "_handlers", {signal.SIGUSR1: lambda number, frame: signals._received.append(signal.SIGUSR1)})
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        asked = Stop(None, propagation_delay=0)
        assert not asked.requested(0) and signal.getsignal(signal.SIGUSR1) is signals._handlers[signal.SIGUSR1]
        signal.raise_signal(signal.SIGUSR1)
        assert asked.requested(0) and asked.verdict[0] == errors.RESUME
    finally:
        signal.signal(signal.SIGUSR1, before)
