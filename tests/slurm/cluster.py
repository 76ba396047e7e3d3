"""A real Slurm on this machine: munged, slurmctld and a slurmd for each virtual node, as whoever runs the tests.

    with Cluster(nodes=4) as cluster:
        job = cluster.sbatch("--ntasks=4", "jobs/slurm/atari.sh", "--env", "pong")
        job.wait()

The daemons listen on loopback, on ports that were free. They are children of this process and end with it, whatever way it
ends; what jobs of a killed cluster have left is removed when the next one starts.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from launch import ROOT, environment, processes

PROGRAMS = {
    "munged": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "setpriv": "util-linux",
    "taskset": "util-linux",
}
FILES = "gala-slurm-"  # then the process that made them
SECONDS_TO_START = 280
SECONDS_TO_END = 30
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE")

# FirstJobId: MPI libraries name files in /dev/shm after jobs, so that these shall not bear the numbers of an earlier cluster's.
# config_overrides: a node has the CPUs that stand here, not those of the machine. linuxproc: the one way, without cgroups, to
# find the ranks that mpirun's helpers start in sessions of their own. cred_expire: a requeued job waits so long, 120 s else.
CONF = """
ClusterName=tests
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={files}/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={files}/state
SlurmdSpoolDir={files}/%n
TmpFS={files}/%n
SlurmctldPidFile={files}/slurmctld.pid
SlurmdPidFile={files}/slurmd-%n.pid
SlurmctldLogFile={files}/slurmctld.log
SlurmdLogFile={files}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
UnkillableStepTimeout=300
MinJobAge=3600
SlurmdTimeout=300
SlurmctldTimeout=300
ReturnToService=2
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=grace Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """What this machine lacks; None if nothing."""
    packages = {package for program, package in PROGRAMS.items() if not _find(program)}
    return f"a Slurm needs the packages {' '.join(sorted(packages))} (as root: make packages)" if packages else None


class Cluster:
    """A context manager: at its end no daemon, no job and no process of a job is left.

    Args:
        nodes: n1, n2, ...; each has 16 CPUs as far as Slurm knows.
    """

    def __init__(self, nodes: int = 4):
        if lack := missing():
            raise RuntimeError(lack)
        _sweep()
        self.files = Path(tempfile.mkdtemp(prefix=f"{FILES}{os.getpid()}-"))
        self.files.chmod(0o755)  # munged wants to be reached by all
        self._environment = environment() | {"SLURM_CONF": str(self.files / "slurm.conf"), "VENV": sys.prefix}
        # Slurm says how many ranks go on a node; told to oversubscribe, Open MPI puts all on the first.
        del self._environment["PRTE_MCA_rmaps_default_mapping_policy"]
        self._daemons: list[subprocess.Popen] = []
        try:
            self._write(nodes)
            munge = [f"--{name}={self.files}/munge.{name.partition('-')[0]}" for name in ("key-file", "socket", "pid-file")]
            munge += [f"--seed-file={self.files}/munge.seed", f"--log-file={self.files}/munge.log"]
            self._start("munged", "--foreground", *munge)
            self._wait_until("munged has made its socket", (self.files / "munge.socket").exists)
            self._start("slurmctld", "-D")
            cores = sorted(os.sched_getaffinity(0))
            for i in range(nodes):  # a core each, as far as there are enough
                self._start("slurmd", "-D", "-N", f"n{i + 1}", core=cores[i % len(cores)])
            self._wait_until("all nodes are idle", lambda: self("sinfo", "-h", "-o", "%T %D", check=False) == f"idle {nodes}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def __call__(self, *command: object, env: Mapping[str, str] = {}, check: bool = True) -> str:
        """What a command of Slurm prints. One that fails, fails the test, unless `check` is false."""
        result = subprocess.run(
            list(map(str, command)), env=self._environment | env, cwd=ROOT, capture_output=True, text=True, timeout=280
        )
        if check and result.returncode:
            pytest.fail(f"{' '.join(map(str, command))}: {result.stderr}{self.report()}", pytrace=False)
        return result.stdout.strip()

    def sbatch(self, *arguments: object, env: Mapping[str, str] = {}) -> Batch:
        """Submit from the repository. The log is a file of the cluster's own."""
        number = self("sbatch", "--parsable", f"--output={self.files}/%A-%a.log", *arguments, env=env)
        return Batch(self, int(number))

    def report(self) -> str:
        """What is needed to understand a failure."""
        log = self.files / "slurmctld.log"
        queue = self("squeue", "-a", "-t", "all", "-o", "%i %j %T %r %R %M restarts", check=False)
        return f"\n--- squeue ---\n{queue}\n--- slurmctld.log ---\n{_tail(log, 30)}"

    def close(self) -> None:
        """End all. A second call does nothing."""
        if self.files.exists():
            self("scancel", "--signal=KILL", f"--user={os.getuid()}", check=False)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        _remove(self.files)

    def _write(self, nodes: int) -> None:
        control, *ports = _free_ports(nodes + 1)
        host = socket.gethostname().partition(".")[0]
        for folder in ("state", *(f"n{i}" for i in range(1, nodes + 1))):
            (self.files / folder).mkdir()
        lines = "\n".join(
            f"NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=16 State=UNKNOWN"
            for i, port in enumerate(ports, 1)
        )
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        first = int(time.time()) % 10_000_000
        conf = CONF.format(host=host, control=control, user=user, files=self.files, nodes=lines, first=first)
        (self.files / "slurm.conf").write_text(conf)
        # Else slurmd looks for the kind of cgroups that the machine has, and ends where there is none.
        (self.files / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        key = self.files / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def _start(self, program: str, *arguments: str, core: int | None = None) -> None:
        """Start a daemon that the kernel ends when this process does; what it starts sees that core alone."""
        command = ["setpriv", "--pdeathsig", "TERM", _find(program), *arguments]
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        with open(self.files / f"{program}.out", "ab") as out:
            self._daemons.append(
                subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            )

    def _wait_until(self, what: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS_TO_START
        while not condition():
            dead = [" ".join(daemon.args) for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                logs = "\n".join(f"--- {log.name} ---\n{_tail(log, 20)}" for log in sorted(self.files.glob("*.[lo][ou][gt]")))
                raise RuntimeError(f"{f'{dead} ended' if dead else f'{SECONDS_TO_START} s passed'} before {what}\n{logs}")
            time.sleep(0.05)


class Batch:
    """A submitted job, or one task of an array."""

    def __init__(self, cluster: Cluster, number: int, task: int | None = None):
        self.cluster, self.number, self.task = cluster, number, task
        self.id = str(number) if task is None else f"{number}_{task}"

    @property
    def log(self) -> str:
        log = self.cluster.files / f"{self.number}-{4294967294 if self.task is None else self.task}.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def fact(self, name: str) -> str:
        """What `scontrol show job` says, for example of JobState, Restarts, ExitCode."""
        found = re.search(rf"\b{name}=(\S+)", self.cluster("scontrol", "-o", "show", "job", self.id))
        return found[1] if found else ""

    @property
    def state(self) -> str:
        return self.fact("JobState")

    @property
    def restarts(self) -> int:
        return int(self.fact("Restarts"))

    def wait_until(self, condition: Callable[[], object], timeout: float = 280) -> None:
        """Wait for something that the job does; the test fails when it ends or takes too long before that."""
        deadline = time.monotonic() + timeout
        while not condition():
            ended = self.state in ENDED
            if (ended and not condition()) or time.monotonic() > deadline:
                how = f"ended ({self.state}, status {self.fact('ExitCode')})" if ended else f"has taken {timeout:g} s"
                pytest.fail(f"job {self.id} {how} before what the test waits for{self.report()}", pytrace=False)
            time.sleep(0.2)

    def wait(self, state: str = "COMPLETED", timeout: float = 280) -> None:
        """Until the job has ended in `state`; any other end fails the test."""
        self.wait_until(lambda: self.state == state, timeout)
        # The nodes may still be at work: a job's state is told before its last process has ended.
        self.wait_until(lambda: not self.cluster("squeue", "-h", "-j", self.number, "-o", "%i", check=False), timeout)

    def processes(self) -> list[int]:
        """Everything that this job has started and that lives."""
        return processes(f"SLURM_JOB_ID={self.number}", f"SLURM_CONF={self.cluster.files}/slurm.conf")

    def report(self) -> str:
        return f"\n--- log of job {self.id} ---\n{_lines(self.log, 60)}{self.cluster.report()}"


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _sweep() -> None:
    """Remove what clusters have left whose process was killed."""
    for files in Path(tempfile.gettempdir()).glob(f"{FILES}*"):
        if not Path("/proc", files.name.split("-")[2]).exists():
            _remove(files)


def _remove(files: Path) -> None:
    """End whatever a cluster has started, and remove its files."""
    while living := processes(f"SLURM_CONF={files}/slurm.conf"):
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(files, ignore_errors=True)


def _tail(path: Path, lines: int) -> str:
    return _lines(path.read_text(errors="replace"), lines) if path.exists() else "(not there)"


def _lines(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])
