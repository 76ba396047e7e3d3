"""Environments in worker processes, for those that take so long to step that one process cannot keep up with a network.

Every worker has some of a rank's environments, and steps them as `GymEnvironments` does in the rank's own process: what they
return is the same, bit for bit. Requests and answers go through a pair of sockets, pickled.

A worker is a new interpreter, which takes nothing over from its rank. The system starts it without a copy of the rank's memory
(vfork), so MPI may have started before: what libraries of MPI do not survive is that the pages of a fork are copied as they
are written. multiprocessing's processes are not used, for they import the main program, and with it torch and mpi4py.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import os
import pickle
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import Pipe, process, spawn
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import numpy as np

from gala_mpi.envs.base import Environments, Spaces, Step
from gala_mpi.envs.modules import in_a_line
from gala_mpi.envs.streams import seed_global
from gala_mpi.errors import JobError, SettingError

# What a worker's interpreter is told to do: it finds modules where its rank does.
BOOT = """
import sys
from multiprocessing.connection import Connection
pipe = Connection({pipe})
sys.path[:] = pipe.recv()
from gala_mpi.envs.workers import serve
serve(pipe, {rank})
"""
NO_MPI = {"MPI4PY_RC_INITIALIZE": "0"}  # an environment may import mpi4py: launchers' variables say that this is a rank
# What a launcher, terminal or batch system sends to all processes of a job. Ranks finish their run at it.
OF_THE_RANK = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
SET_PDEATHSIG = 1  # prctl's
SECONDS_TO_CLOSE = 5.0  # for environments to close in; after that a worker is killed
MILLISECONDS_BETWEEN_LOOKS = 1000  # whether a worker that does not answer lives; its pipe mostly says so at once


class Maker(Protocol):
    """Makes environments in a worker: a function that can be pickled.

    Raises:
        SettingError, JobError: as `registry.make`.
    """

    def __call__(self, num_envs: int, first: int) -> Environments:
        """Make `num_envs` environments, of which the first is number `first` of the rank's."""
        ...


class Program(NamedTuple):
    """The main program of a rank, which a worker imports where it does not know the environment otherwise.

    Attributes:
        known: whether an environment is known without it: a function that can be pickled.
        preparation: what multiprocessing tells its processes of it.
    """

    known: Callable[[], bool]
    preparation: dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a worker is told at its start."""

    make: Maker
    num_envs: int
    first: int
    entropy: list[int]  # of the global streams from which environments may draw as they are made
    program: Program


class Made(NamedTuple):
    """What a worker says of the environments that it has made."""

    spaces: Spaces
    declared: str  # observation and action space, as gymnasium writes them


class Failure(NamedTuple):
    """Why a worker could not do what it was asked for."""

    kind: type[Exception]  # JobError or SettingError, whose text says everything; else WorkerError
    line: str
    trace: str


class WorkerError(Exception):
    """An environment has raised something in a worker process. Its text names the environments; its cause has the traceback.

    Attributes:
        line: what was raised and where, in one line.
    """

    def __init__(self, text: str, line: str):
        super().__init__(text)
        self.line = line


class RemoteTraceback(Exception):
    """The traceback of another process, shown as the cause of an error in this one."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class WorkerEnvironments(Environments):
    """Environments of gymnasium in worker processes. They compute between `send` and `receive`.

    Args:
        name: the environment's, for messages.
        num_envs: N.
        workers: how many processes, N at most; the environments are dealt over them.
        make: makes those of one worker.
        known: whether a worker knows the environment without the main program's import; a function that can be pickled.
        first: the number of the first environment among its rank's.

    Raises:
        SettingError: no network takes its observations or gives its actions.
        JobError: a worker cannot be started, or its environments are not those of the others.
        WorkerError: an environment raises as it is made.
    """

    def __init__(self, name: str, num_envs: int, workers: int, make: Maker, known: Callable[[], bool], first: int = 0):
        self.name, self.num_envs = name, num_envs
        bounds = np.linspace(0, num_envs, workers + 1).round().astype(int)
        self._shares = [slice(int(first), int(last)) for first, last in itertools.pairwise(bounds)]
        program = Program(known, _main_program())
        # From the rank's own global stream: so they repeat where that does.
        entropy = np.random.randint(0, 2**32, (workers, 4), np.uint64).tolist()
        tasks = [
            Task(make, share.stop - share.start, first + share.start, words, program)
            for share, words in zip(self._shares, entropy)
        ]
        self._workers = [_Worker(name, task) for task in tasks]  # which start side by side
        made: list[Made] = [worker.answer() for worker in self._workers]
        for worker, one in zip(self._workers, made):
            if one != made[0]:
                raise JobError(f"--env {name}: {worker.whose} have {one.declared}, environment 0 {made[0].declared}")
        self.spaces = made[0].spaces
        self._advice: list[str] = []

    @property
    def advice(self) -> Sequence[str]:
        return self._advice

    @property
    def processes(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        return np.concatenate(self._ask("reset", [seeds[share] for share in self._shares]))

    def send(self, actions: np.ndarray) -> None:
        for worker, share in zip(self._workers, self._shares):
            worker.ask("step", actions[share])

    def receive(self) -> Step:
        steps: list[Step] = [worker.answer() for worker in self._workers]
        final = None
        if any(step.final_observations is not None for step in steps):
            final = np.zeros((self.num_envs, *self.spaces.observation_shape), self.spaces.observation_dtype)
            for share, step in zip(self._shares, steps):
                if step.final_observations is not None:
                    final[share] = step.final_observations
        observations, rewards, terminated, truncated = (
            np.concatenate([getattr(step, name) for step in steps])
            for name in ("observations", "rewards", "terminated", "truncated")
        )
        episodes = [
            replace(episode, environment=share.start + episode.environment)
            for share, step in zip(self._shares, steps)
            for episode in step.episodes
        ]
        return Step(observations, rewards, terminated, truncated, final, episodes)

    def rehearse(self) -> None:
        super().rehearse()
        notes = self._ask("advice", [None] * len(self._workers))
        self._advice = list(dict.fromkeys(note for some in notes for note in some))

    def close(self) -> None:
        for worker in self._workers:
            worker.dismiss()
        until = time.monotonic() + SECONDS_TO_CLOSE
        for worker in self._workers:
            worker.wait(until)

    def _ask(self, request: str, arguments: Sequence[Any]) -> list[Any]:
        """Ask every worker for something, and return their answers."""
        for worker, argument in zip(self._workers, arguments):
            worker.ask(request, argument)
        return [worker.answer() for worker in self._workers]


class _Worker:
    """A worker process as its rank sees it. It begins with its task, and answers as soon as its environments are made."""

    def __init__(self, name: str, task: Task):
        self._name = name
        last = task.first + task.num_envs - 1
        self.whose = f"environment {last}" if task.num_envs == 1 else f"environments {task.first} to {last}"
        self._pipe, theirs = Pipe()
        # A signal for the rank would end an interpreter that is not yet told to leave it alone: it waits until then.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_RANK)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", BOOT.format(pipe=theirs.fileno(), rank=os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | NO_MPI,
                start_new_session=True,  # a terminal's Ctrl-C is for the ranks
            )
        except OSError as error:
            raise JobError(f"--env-workers: a worker process for {self.whose} of {name} cannot be started: {error}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._answers = select.poll()
        self._answers.register(self._pipe, select.POLLIN)
        self._send(sys.path)
        self._send(task)

    def ask(self, request: str, argument: Any) -> None:
        self._send((request, argument))

    def answer(self) -> Any:
        """Wait for the answer to the last request, and return it.

        Raises:
            JobError: the worker has ended, or an environment does not do as it has declared.
            SettingError, WorkerError: see `Failure`.
        """
        try:
            # An environment may have forked a process, which keeps a pipe open whose worker has ended.
            while not self._answers.poll(MILLISECONDS_BETWEEN_LOOKS):
                if self.process.poll() is not None and not self._answers.poll(0):
                    raise EOFError
            answer = pickle.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(answer, Failure):
            raise self._failure(answer)
        return answer

    def dismiss(self) -> None:
        """Let the worker close its environments and end, without waiting for that."""
        try:
            self._pipe.send_bytes(pickle.dumps(None))
        except OSError:  # it has ended
            pass

    def wait(self, until: float) -> None:
        """Wait until the worker has ended (until then at most, by time.monotonic), and free what it had."""
        self._end(until)
        self._pipe.close()

    def _end(self, until: float) -> int:
        """Wait until the worker has ended; kill it where it does not. Return its status, as `subprocess` has it."""
        try:
            return self.process.wait(max(0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _send(self, message: Any) -> None:
        try:
            self._pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        except OSError:  # it has ended, maybe with an answer that says why
            pass

    def _death(self) -> JobError:
        status = self._end(time.monotonic() + SECONDS_TO_CLOSE)
        names = {number.value: f" ({number.name})" for number in signal.Signals}
        how = f"by signal {-status}{names.get(-status, '')}" if status < 0 else f"with status {status}"
        return JobError(
            f"--env {self._name}: the worker process {self.process.pid} of {self.whose} has ended {how}; "
            "it is to live until its rank ends it"
        )

    def _failure(self, failure: Failure) -> Exception:
        if failure.kind is not WorkerError:
            return failure.kind(failure.line)
        error = WorkerError(f"--env {self._name}: a worker process of {self.whose} has failed: {failure.line}", failure.line)
        error.__cause__ = RemoteTraceback(failure.trace)
        return error


def _main_program() -> dict[str, Any]:
    """Return what multiprocessing would tell a process of the main program."""
    wanted = ("sys_argv", "dir", "init_main_from_name", "init_main_from_path")
    return {name: value for name, value in spawn.get_preparation_data("worker").items() if name in wanted}


# What follows runs in a worker.


def serve(pipe: Connection, rank: int) -> None:
    """Make environments and step them as a rank asks, until it says that it is enough, or is gone.

    Args:
        rank: the process that has started this one.
    """
    _end_with(rank)
    _leave_signals_alone()
    faulthandler.enable()  # an environment that crashes is to say where
    try:
        task: Task = pipe.recv()
        environments = _make(task, pipe)
        while environments and (request := pickle.loads(pipe.recv_bytes())):
            if not _answer(pipe, lambda: _do(environments, task.first, *request)):
                break
    except (EOFError, OSError):  # the rank is gone
        return
    if environments:
        environments.close()


def _make(task: Task, pipe: Connection) -> Environments | None:
    """Make the environments, and say what they are, or why not."""
    made: list[Any] = []

    def make() -> Made:
        seed_global(np.random.SeedSequence(task.entropy))
        made.append(_make_with(task.program, partial(task.make, task.num_envs, task.first)))
        first = made[0].envs[0]
        return Made(made[0].spaces, " ".join(f"{first.observation_space}, {first.action_space}".split()))

    return made[0] if _answer(pipe, make) else None


def _make_with(program: Program, make: Callable[[], Environments]) -> Environments:
    """Make environments, with the main program where they are not known without it."""
    if program.known():
        return make()
    _import_main(program.preparation)
    try:
        return make()
    except SettingError as error:
        less = "here, in a worker process, but for what stands below its `if __name__ == '__main__':`"
        raise SettingError(f"{error} (the main program was imported {less})") from None


def _do(environments: Environments, first: int, request: str, argument: Any) -> Any:
    """Do what the rank asks for; `first` is the number of the first environment."""
    if request == "step":
        return environments.step(argument)
    if request == "reset":
        # Global streams repeat by what they are of: the seeds say the run's, the rank and the update.
        seed_global(np.random.SeedSequence([first, *argument.tolist()]))
        return environments.reset(argument)
    return environments.advice


def _answer(pipe: Connection, compute: Callable[[], Any]) -> bool:
    """Send what `compute` returns, or why it fails; return whether it does not."""
    try:
        answer = compute()
    except (JobError, SettingError) as error:
        kind = SettingError if isinstance(error, SettingError) else JobError
        answer = Failure(kind, str(error), "")
    except BaseException as error:  # SystemExit too: whatever an environment does
        answer = Failure(
            WorkerError,
            "; ".join([in_a_line(error), *getattr(error, "__notes__", [])]),
            "".join(traceback.format_exception(error)),
        )
    pipe.send_bytes(pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
    return not isinstance(answer, Failure)


def _import_main(preparation: dict[str, Any]) -> None:
    """Import the main program as multiprocessing does, below another name than __main__."""
    current: Any = process.current_process()
    current._inheriting = True  # by which `host.imports_main_again` tells that this is no start of a rank
    try:
        spawn.prepare(preparation)
    finally:
        del current._inheriting


def _end_with(rank: int) -> None:
    """Have the system kill this process when the rank dies, however that is, and whatever this one does then."""
    ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != rank:  # it has died before
        os._exit(1)


def _leave_signals_alone() -> None:
    """Do nothing at signals that are for the rank. Processes that an environment starts heed them as ever."""
    before = {number: signal.getsignal(number) for number in OF_THE_RANK}
    for number in OF_THE_RANK:
        signal.signal(number, lambda number, frame: None)  # not ignored: what is ignored stays so in other programs
    os.register_at_fork(after_in_child=lambda: [signal.signal(number, how) for number, how in before.items()])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_RANK)
