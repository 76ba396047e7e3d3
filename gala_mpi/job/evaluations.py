"""Evaluate a run while it trains (--evaluate-minutes): a checkpoint of all ranks is played now and then, and the last one.

A process of its own plays, beside one rank: that of the host with the most cores that no rank uses, the lowest of several. It
is `gala_mpi.evaluate` without MPI, on one thread and at a lower priority than the ranks, and knows nothing of them but a
checkpoint. So no rank waits for it, and nothing that an agent draws or plays depends on it. Its result is in run.h5, as of any
evaluation, where rank 0 looks for it.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gala_mpi import pulse
from gala_mpi.config import Config
from gala_mpi.job import command
from gala_mpi.job.signals import Stop
from gala_mpi.mpi.world import World
from gala_mpi.record.logs import Scalars
from gala_mpi.run import checkpoints, evaluations, layout

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_AT_THE_END = 600.0  # for the evaluation of the last checkpoint, when everybody waits for it
EARLY = 0.1  # of the minutes between evaluations by which a checkpoint may be too early
FILM_STEPS = 200  # that the film for a log shows
# By the weights of Linux a tenth of what a rank gets of the same core; with 19 it would be a seventieth.
NICE = 10
# What the process's interpreter is told to do. It ends with its rank, however that does.
BOOT = f"""
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != {{rank}}:
    sys.exit(1)
os.nice({NICE})
os.sched_setaffinity(0, {{cores}})
from gala_mpi import evaluate
sys.exit(evaluate.play_alone(sys.argv[1:]))
"""
# Variables by which launchers tell a process which rank it is. This one is none.
OF_LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "PRTE_", "HYDRA_", "HYDI_", "MPI_LOCAL", "SLURM_", "PALS_")
ALONE = {"MPI4PY_RC_INITIALIZE": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Evaluations:
    """What a rank does for evaluations: one of them starts processes; if it is lost, another one. Rank 0 looks for results.

    Args:
        config: with `evaluate_minutes`.
        world: all agents.
        stop: whether somebody wants the run to end.
        news: of rank 0; None on the others.
    """

    def __init__(self, config: Config, world: World, stop: Stop, news: News | None):
        self._config, self._run, self._world = config, config.directory, world
        self._stop, self._news = stop, news
        self._order = sorted(range(world.size), key=lambda rank: -world.idle_cores[world.hosts[rank]])
        self._seconds = 60 * (config.evaluate_minutes or 0.0)
        self._due = time.monotonic() + self._seconds
        self._wanted: int | None = None  # the checkpoint that is to be played next, once all ranks have saved it
        self._playing: Playing | None = None
        self._looked = 0.0
        self._said: set[str] = set()

    def saved(self, number: int) -> None:
        """Take note that this rank has saved a checkpoint; it is played if it is time to."""
        if time.monotonic() >= self._due - EARLY * self._seconds:
            self._due, self._wanted = time.monotonic() + self._seconds, number

    def look(self) -> None:
        """See to the process, start one if there is a checkpoint for it, and take in results. To be called often."""
        if time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        if self._stop.urgent:
            self.end()
        if self._playing and self._playing.ended():
            self._close(self._playing)
        if self._wanted is not None and not self._playing:
            self._begin_if_mine(self._wanted)
        if self._news:
            self._news.take()

    def conclude(self, number: int, show: Callable[[str], None] = lambda line: None) -> None:
        """Play the last checkpoint, which all ranks have saved, unless a signal has come, and wait for that, a while at most.
        Collective.

        Args:
            show: told, often, how far it is.
        """
        played = self._playing is not None and self._playing.number == number
        played |= number in evaluations.scores(self._run)
        self._due, self._wanted = math.inf, None if played else number
        until = time.monotonic() + SECONDS_AT_THE_END
        while not self._world.all(self._wanted is None and self._playing is None):
            pulse.wait()
            if self._world.largest(self._stop.urgent):
                self.end()
            elif time.monotonic() > until:
                self.end(f"it has taken {SECONDS_AT_THE_END / 60:.0f} minutes since the end of training")
            self.look()
            if self._playing:
                show(f"evaluation of checkpoint {self._playing.number} goes on" + self._playing.said())
            time.sleep(SECONDS_BETWEEN_LOOKS / 2)
        if self._news:
            self._news.take()
            with suppress(OSError):  # there is none, or a film is left in it
                layout.films(self._run).rmdir()

    def end(self, why: str = "") -> None:
        """End the process at once, if there is one, and start no more; say `why`, if it is not known."""
        self._due, self._wanted = math.inf, None
        if self._playing:
            self._playing.kill()
            if why:
                self._say(f"warning: the evaluation of checkpoint {self._playing.number} is given up: {why}")
            self._playing = None

    def _begin_if_mine(self, wanted: int) -> None:
        """Begin to play checkpoint `wanted`, or a newer one, once it is complete, if it is this rank that does so."""
        lost = layout.lost(self._run)
        if self._world.rank != next((rank for rank in self._order if rank not in lost), 0):
            self._wanted = None
            return
        newer = (number for number in reversed(checkpoints.numbers(self._run)) if number >= wanted)
        complete = next((number for number in newer if checkpoints.is_complete(self._run, number)), None)
        if complete is not None:
            self._wanted = None
            self._begin(complete)

    def _begin(self, number: int) -> None:
        try:
            self._playing = Playing(self._config, number, self._world.size, self._world.cores)
        except OSError as error:  # no more processes, a disk that is full, ...
            with suppress(OSError):  # nobody else would let go of the checkpoint
                layout.evaluation_mark(self._run, number).unlink(missing_ok=True)
            self._say(f"warning: checkpoint {number} is not evaluated ({error})")

    def _close(self, ended: Playing) -> None:
        """Say what is to be said of a process that has ended."""
        self._playing = None
        problem, words = ended.close()
        for line in words:
            if line not in self._said:
                self._said.add(line)
                self._say(line)
        if problem:
            self._say(
                f"warning: the evaluation of checkpoint {ended.number} has ended without a result ({problem}); training goes on"
            )

    def _say(self, line: str) -> None:
        print(f"gala_mpi: {line}", file=sys.stderr, flush=True)


class Playing:
    """A process that evaluates a checkpoint, which is kept meanwhile.

    Args:
        config: the run's settings.
        number: the checkpoint's.
        agents: how many the run has.
        cores: on which it may run.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, config: Config, number: int, agents: int, cores: set[int]):
        self.number, self._run = number, config.directory
        self._said, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._mark = layout.evaluation_mark(self._run, number)
        self._mark.touch()
        words = [str(self._run), "--checkpoint", str(number), "--episodes", str(config.evaluate_episodes)]
        words += ["--policies", "all" if config.apart(agents) else "mean"]
        if config.log:
            layout.films(self._run).mkdir(exist_ok=True)
            words += ["--video", str(layout.film_file(self._run, number)), "--video-steps", str(FILM_STEPS)]
        # The system starts it without a copy of the rank's memory (vfork), as MPI needs it: see envs/workers.py. It stays in
        # its rank's session, within which Linux weighs priorities; a terminal's Ctrl-C is for the ranks.
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOOT.format(rank=os.getpid(), cores=cores), *words],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._errors,
            env=_environment(),
            cwd=command.here(),
            process_group=0,
        )

    def ended(self) -> bool:
        return self._process.poll() is not None

    def said(self) -> str:
        """Return the last thing that it has said of how far games and film are, behind a colon; empty: nothing yet."""
        size = os.fstat(self._said.fileno()).st_size
        lines = os.pread(self._said.fileno(), size, 0).decode(errors="replace").splitlines()
        return next((f": {line}" for line in reversed(lines) if line.endswith((" left", " filmed"))), "")

    def kill(self) -> None:
        """End it at once, without a trace."""
        self._process.kill()
        self._process.wait()
        self.close()

    def close(self) -> tuple[str, list[str]]:
        """Clean up behind it, once it has ended. Return what went wrong, or nothing, and what it had to say."""
        self._mark.unlink(missing_ok=True)
        for path in self._run.glob(f".run.h5.*.{self._process.pid}.tmp"):
            path.unlink(missing_ok=True)
        for path in layout.films(self._run).glob(f".{layout.film_file(self._run, self.number).stem}.*"):
            path.unlink(missing_ok=True)
        size = os.fstat(self._errors.fileno()).st_size
        lines = os.pread(self._errors.fileno(), size, 0).decode(errors="replace").splitlines()
        self._said.close()
        self._errors.close()
        words = [line.removeprefix("gala_mpi: ") for line in lines if line.startswith("gala_mpi: ")]
        status = self._process.returncode
        if status == 0:
            return "", words
        if words:
            return words[-1], words[:-1]
        return f"killed by signal {-status}" if status < 0 else f"status {status}: {(lines or ['it said nothing'])[-1]}", []


def _environment() -> dict[str, str]:
    """Return the environment of the process: no launcher's, and with it modules are found where this rank finds them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
    path = os.pathsep.join(str(command.here() / folder) for folder in sys.path)
    return kept | ALONE | {"PYTHONPATH": path}


class News:
    """What rank 0 makes of evaluations that have ended: a line, and what its logs show.

    Args:
        run: the run directory.
        say: prints a line.
        logs: of the run; None: there are none.
    """

    def __init__(self, run: Path, say: Callable[[str], None], logs: Scalars | None):
        self._run, self._say, self._logs = run, say, logs
        self._known = evaluations.number(run)
        self._seen = self._stamp()
        self._steps: dict[int, int] = {}  # of the checkpoints that have been evaluated

    def take(self) -> None:
        """Take in what is new."""
        stamp = self._stamp()
        if stamp != self._seen:
            with suppress(Exception):  # h5py raises many kinds; the next look comes soon
                new = evaluations.read(self._run, self._known)
                self._known, self._seen = evaluations.number(self._run), stamp
                for each in new:
                    self._steps[each.checkpoint] = each.steps
                    self._tell(each)
        if self._logs:
            for gif in sorted(layout.films(self._run).glob("[0-9]*.gif")):
                if int(gif.stem) in self._steps:
                    self._logs.film(self._steps[int(gif.stem)], gif)
                    gif.unlink()

    def _tell(self, done: evaluations.Evaluated) -> None:
        best = f"; best: checkpoint {number}" if (number := checkpoints.best(self._run)) is not None else ""
        self._say(f"evaluation: {done}{best}")
        if self._logs and done.while_training:
            self._logs.evaluation(done)

    def _stamp(self) -> tuple[int, int]:
        """Return what changes when run.h5 is replaced; nothing while it is not to be seen."""
        try:
            status = layout.run_file(self._run).stat()
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_ino
