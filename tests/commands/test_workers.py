"""Processes beside a rank: those of an environment, which begin, are told to end, and start no MPI of their own; and those that
step environments (--env-workers), which end with their rank, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from commandline import SMALL, TRAIN, complaints, flushed, parameters, start, train
from gala_mpi import errors, open_run
from launch import ROOT, Job, environment, mpirun

HERE = Path(__file__).parent
FLAGS = ("--env", "worker_pole:WorkerPole-v0", "--num-envs", 1, "--precision", "fp32", "--total-steps", 40)


@pytest.mark.parametrize("ranks, method", [(2, "fork"), (1, "spawn"), pytest.param(2, "forkserver", marks=pytest.mark.long)])
def test_an_environment_with_a_process_of_its_own(tmp_path, ranks, method):
    done = mpirun(ranks, *TRAIN, *FLAGS, "--env-kwargs", f"method={method}", "--run-dir", tmp_path / "run", cwd=HERE)
    assert done.returncode == 0 and "finished: " in done.stdout, done.stdout + done.stderr
    assert not complaints(done) and "Traceback" not in done.stderr


@pytest.mark.long
def test_a_program_without_its_guard_is_told(tmp_path):
    """Its workers would train, too."""
    flags = ("--env", "WorkerPole-v0", *FLAGS[2:], "--env-kwargs", "method=spawn", "--run-dir", tmp_path / "run")
    done = mpirun(1, HERE / "worker_pole.py", *flags)
    assert done.returncode not in (0, 75) and "is to stand below `if __name__ == '__main__':`" in done.stderr


# (train may be imported by programs of one's own, in which MPI starts as ever.)
IMPORTED = """
import sys
from gala_mpi import evaluate
from gala_mpi.bench import __main__
from gala_mpi.doctor import __main__
from mpi4py import MPI
print(MPI.Is_initialized())
from gala_mpi.mpi.world import World
with World() as world:
    print(MPI.Is_initialized(), MPI.Query_thread() >= MPI.THREAD_FUNNELED)
"""


def test_importing_the_programs_does_not_start_mpi():
    done = subprocess.run([sys.executable, "-c", IMPORTED], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["False", "True True"], done.stderr


# Worker processes

IN_STEP = ("--exchange", "allreduce", "--total-steps", 400)
LONG = ("--total-steps", 100_000_000)
WORKED = ("--env", "worked:Worked-v0", "--num-envs", 4, "--precision", "fp32", "--env-workers", 2)
PATH = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def workers(job: Job) -> list[int]:
    """The job's worker processes."""
    command = "gala_mpi.envs.workers import serve"
    return [pid for pid in job.processes() if command in Path(f"/proc/{pid}/cmdline").read_text()]


def trains(job: Job, run: Path) -> None:
    job.wait_until(lambda: (run / "metrics" / "rank00001.h5").exists() and flushed(run, 1) > 0)


@pytest.mark.long  # tests/test_env_workers.py asks the same of the environments alone
def test_a_run_with_workers_learns_the_same_bit_for_bit_and_is_evaluated_by_them(tmp_path):
    train(2, tmp_path / "one", *SMALL, *IN_STEP)
    for name, flags in (("workers", ("--env-workers", 2)), ("halves", ("--env-workers", 4, "--overlap"))):
        done = train(2, tmp_path / name, *SMALL, *IN_STEP, *flags)
        assert not complaints(done) and f"4 environments in {flags[1]} workers" in done.stdout
        if name == "workers":
            assert np.array_equal(parameters(tmp_path / "one", 2), parameters(tmp_path / name, 2))
    played = [
        mpirun(2, "-m", "gala_mpi.evaluate", tmp_path / name, "--episodes", 3, "--policies", "mean")
        for name in ("one", "workers")
    ]
    assert [result.returncode for result in played] == [0, 0], played[1].stderr
    games = [open_run(tmp_path / name).evaluations[-1][0] for name in ("one", "workers")]
    assert len(games[0]) == 3 and np.array_equal(*(np.sort(each, order="game") for each in games))


@pytest.mark.parametrize("how, said", [("raise", "RuntimeError: the pole has broken"), ("crash", "by signal 11 (SIGSEGV)")])
def test_an_environment_that_breaks_in_a_worker_ends_the_job(tmp_path, how, said):
    flags = (*WORKED, *LONG, "--env-kwargs", f"how={how}", "at=50", "--run-dir", tmp_path / "run")
    with Job(2, *TRAIN, *flags, env=PATH) as job:
        done = job.wait(120)
        assert done.returncode == errors.FAILED and said in done.stderr, done.stderr
        assert "of environment" in done.stderr and ("worked.py" in done.stderr), done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_ends_the_job_and_a_killed_rank_its_workers(tmp_path, number):
    """A worker takes SIGTERM for the rank's. The launcher ends the other ranks, and they their workers."""
    run = tmp_path / "run"
    with start(2, run, *SMALL, "--env-workers", 2, *LONG) as job:
        trains(job, run)
        assert len(workers(job)) == 4
        os.kill(workers(job)[0], number)
        if number == signal.SIGTERM:
            before = flushed(run, 0)
            wait_until(lambda: flushed(run, 0) > before)
            assert len(workers(job)) == 4
            os.kill(job.ranks()[0], signal.SIGKILL)
        job.launcher.wait(120)
        assert job.launcher.returncode not in (0, errors.RESUME)
        if number == signal.SIGKILL:
            assert job.launcher.returncode == errors.FAILED and "has ended by signal 9 (SIGKILL)" in job.stderr
        wait_until(lambda: not workers(job))


def wait_until(condition) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError


def test_a_signal_to_every_process_saves_and_stops(tmp_path):
    """As batch systems send it."""
    run = tmp_path / "run"
    with start(2, run, *SMALL, "--env-workers", 2, *LONG) as job:
        trains(job, run)
        for pid in [*workers(job), *job.ranks()]:
            os.kill(pid, signal.SIGUSR1)
        done = job.wait(120)
        assert done.returncode == errors.RESUME and "SIGUSR1" in done.stdout + done.stderr, done.stderr
