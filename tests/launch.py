"""Starting programs under mpirun, as a user does, and never leaving one behind.

The launcher is the one beside this interpreter, so that a test runs on the MPI of its own environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCHER = Path(sys.executable).with_name("mpirun")
OPEN_MPI = b"Open MPI" in subprocess.run([LAUNCHER, "--version"], capture_output=True, check=True).stdout
HANGS = 300.0  # s, after which a job counts as hanging. Tests wait for events; this is no measure of how fast anything is.
SECONDS_TO_DUMP = 15.0  # that a hanging rank has to write down where it stands
MARK = "GALA_MPI_TEST_JOB"

# What another launcher (mpirun, srun) leaves in the environment; a launcher that inherits it believes to be a rank.
OF_LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "HYDRA_", "HYDI_", "MPI_LOCALNRANKS", "MPI_LOCALRANKID", "SLURM_")
# More ranks than cores, as root, unbound: what Open MPI wants to be told. MPICH heeds none of it.
FOR_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}


class Job:
    """`mpirun -n n python ...` in a session of its own. A context manager: at its end no process of the job is left.

    Args:
        n: how many ranks.
        arguments: what python is told, for example "-m", "gala_mpi.train".
        env: variables set for the ranks.
        cwd: where the ranks run.
    """

    def __init__(self, n: int, *arguments: object, env: Mapping[str, str] = {}, cwd: Path | None = None):
        self.n = n
        self._mark = uuid.uuid4().hex
        # Files, not pipes: a pipe that some process still holds open would keep us waiting for its end.
        self._out, self._err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        self.launcher = subprocess.Popen(
            [LAUNCHER, "-n", str(n), sys.executable, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            env=environment() | {MARK: self._mark} | env,
            cwd=cwd,
            start_new_session=True,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception) -> None:
        self.kill()

    @property
    def stdout(self) -> str:
        return _contents(self._out)

    @property
    def stderr(self) -> str:
        return _contents(self._err)

    def processes(self) -> list[int]:
        """Everything that this job has started and that lives: the launcher, its helpers, the ranks."""
        return processes(f"{MARK}={self._mark}")

    def ranks(self) -> list[int]:
        """The ranks' processes, in the order of their rank."""
        numbers = {}
        for pid in self.processes():
            variables = dict(line.partition(b"=")[::2] for line in _read(pid, "environ").split(b"\0"))
            rank = variables.get(b"PMI_RANK", variables.get(b"PMIX_RANK"))
            if rank is not None and b"python" in _read(pid, "cmdline"):
                numbers[pid] = int(rank)
        return sorted(numbers, key=numbers.get)

    def wait_until(self, condition: Callable[[], object], timeout: float = HANGS) -> None:
        """Wait for something that the job does; the test fails when it ends or takes too long before that."""
        deadline = time.monotonic() + timeout
        while not condition():
            if self.launcher.poll() is not None and not condition():
                pytest.fail(f"the job ended (status {self.launcher.returncode}) too early\n{self._said()}", pytrace=False)
            if time.monotonic() > deadline:
                self._fail_as_hanging(timeout)
            time.sleep(0.05)

    def wait(self, timeout: float = HANGS) -> subprocess.CompletedProcess:
        """How the job ended. One that takes longer than `timeout` s fails the test, saying where each rank stood."""
        deadline = time.monotonic() + timeout
        while self.launcher.poll() is None:
            if time.monotonic() > deadline:
                self._fail_as_hanging(timeout)
            time.sleep(0.02)
        self.kill()
        return subprocess.CompletedProcess(self.launcher.args, self.launcher.returncode, self.stdout, self.stderr)

    def kill(self) -> None:
        """End every process of the job, ranks first, whatever session they are in."""
        while living := self.processes():
            for pid in [*self.ranks(), *living]:
                _signal(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.launcher.wait()

    def _fail_as_hanging(self, timeout: float) -> None:
        ranks = self.ranks()
        for pid in set(self.processes()) - set(ranks):
            _signal(pid, signal.SIGSTOP)  # a launcher that sees one rank die would kill the others before they can speak
        stacks = "\n".join(f"--- rank {rank} stood here ---\n{_last_words(pid)}" for rank, pid in enumerate(ranks))
        self.kill()
        command = " ".join(map(str, self.launcher.args))
        pytest.fail(f"{command}\nhas hung for {timeout:g} s\n{self._said()}\n{stacks}", pytrace=False)

    def _said(self) -> str:
        return f"--- stdout ---\n{self.stdout}\n--- stderr ---\n{self.stderr}"


def mpirun(n: int, *arguments: object, timeout: float = HANGS, env: Mapping[str, str] = {}, cwd: Path | None = None):
    """Run `mpirun -n n python arguments...` to its end → subprocess.CompletedProcess. See `Job`."""
    with Job(n, *arguments, env=env, cwd=cwd) as job:
        return job.wait(timeout)


def processes(*variables: str) -> list[int]:
    """Everything that lives and was started with these variables (NAME=value) in its environment."""
    wanted = {variable.encode() for variable in variables}
    everything = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [pid for pid in everything if wanted <= set(_read(pid, "environ").split(b"\0"))]


def is_stopped(pid: int) -> bool:
    """Whether a process stands still, as after SIGSTOP."""
    return _read(pid, "stat").rpartition(b")")[2].split()[:1] == [b"T"]


def environment() -> dict[str, str]:
    """This process's environment, fit for a launcher."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    return kept | FOR_OPEN_MPI | {"PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}


def _last_words(pid: int) -> str:
    """End a rank that hangs; what it then writes to standard error: its stack, by PYTHONFAULTHANDLER."""
    try:
        pipe = os.open(f"/proc/{pid}/fd/2", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return "(it has ended)"
    _signal(pid, signal.SIGABRT)
    deadline = time.monotonic() + SECONDS_TO_DUMP
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    with open(pipe, "rb") as words:
        return (words.read() or b"(silent)").decode(errors="replace")


def _contents(file) -> str:
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def _read(pid: int, name: str) -> bytes:
    """A file of /proc; empty when the process is gone (or its environment is, as a zombie's)."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _lives(pid: int) -> bool:
    return bool(_read(pid, "cmdline"))


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
