"""The ranks agree on every verdict: a test that fails on one rank fails on all, and rank 0 says which rank and why.

Only rank 0 prints the report. A test that hangs ends the job, after every rank has written down where it stands.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import pytest
from mpi4py import MPI

WORLD = MPI.COMM_WORLD
SECONDS_TO_WAIT_FOR_OTHERS = 10.0  # before a failure is told at once: the others may be waiting for this rank for ever
SECONDS_TO_DUMP = 3.0  # between this rank's stack and its end, which ends the other ranks
NOT_OURS = ("/_pytest/", "/pytest/", "/pluggy/", "<frozen")  # parts of the stack that say nothing

_stderr = 2  # the real one, past pytest's capture


@pytest.fixture
def comm():
    """All ranks, on a communicator of the test's own."""
    comm = WORLD.Dup()
    yield comm
    comm.Free()


class Signs:
    """What ranks of one host tell each other past MPI, by files: who waits for one is outside MPI meanwhile, and asleep."""

    def __init__(self, comm: MPI.Intracomm, folder: Path):
        self._comm, self._folder = comm, Path(comm.bcast(str(folder)))

    def give(self, name: str) -> None:
        """Say that this rank has come so far."""
        (self._folder / f"{name}-{self._comm.rank}").touch()

    def given(self, name: str, ranks: Iterable[int]) -> bool:
        return all((self._folder / f"{name}-{rank}").exists() for rank in ranks)

    def wait(self, name: str, ranks: Iterable[int]) -> None:
        """Until these ranks have come so far."""
        ranks = list(ranks)
        while not self.given(name, ranks):
            time.sleep(0.005)

    def others(self) -> list[int]:
        return [rank for rank in range(self._comm.size) if rank != self._comm.rank]


@pytest.fixture
def signs(comm, tmp_path) -> Signs:
    return Signs(comm, tmp_path)


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    global _stderr
    _stderr = os.dup(2)
    if WORLD.rank:
        config.pluginmanager.unregister(name="terminalreporter")


def pytest_report_header():
    return f"{WORLD.size} ranks, {MPI.Get_library_version().splitlines()[0]}"


def pytest_collectreport(report):
    if report.failed and WORLD.rank:
        _say(report.longreprtext)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    watchdog = threading.Timer(float(item.config.getini("faulthandler_timeout")) - 10, _give_up, [item.nodeid])
    watchdog.daemon = True
    watchdog.start()
    try:
        return (yield)
    finally:
        watchdog.cancel()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    mine = error = result = None
    try:
        result = yield
    except (Exception, pytest.fail.Exception) as raised:
        error = raised
        mine = str(pyfuncitem.repr_failure(pytest.ExceptionInfo.from_exception(error)))
    _wait_for_others(mine and f"{pyfuncitem.nodeid} has failed:\n{mine}")
    said = enumerate(WORLD.allgather(mine))
    others = [f"rank {rank} failed:\n{text}" for rank, text in said if text and rank != WORLD.rank]
    if error:
        for other in others:
            error.add_note(other)
        raise error
    if others:
        pytest.fail("\n".join(others), pytrace=False)
    return result


def _wait_for_others(message: str | None) -> None:
    """Until all ranks have ended the test. A failure is not kept back while others hang, maybe because of it."""
    everybody = WORLD.Ibarrier()
    began = time.monotonic()
    while not everybody.Test():
        time.sleep(0.005)
        if message and time.monotonic() - began > SECONDS_TO_WAIT_FOR_OTHERS:
            _say(message)
            message = None


def _give_up(test: str) -> None:
    """Say where this rank stands, let the others do so too, and end the job."""
    stack = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident])
    lines = traceback.format_list([frame for frame in stack if not any(part in frame.filename for part in NOT_OURS)])
    _say(f"{test} hangs; this rank stands here (most recent call last):\n{''.join(lines)}")
    time.sleep(SECONDS_TO_DUMP)
    os._exit(1)


def _say(message: str) -> None:
    os.write(_stderr, "".join(f"[rank {WORLD.rank}] {line}\n" for line in message.splitlines()).encode())
