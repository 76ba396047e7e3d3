"""Environments that start processes of their own: they begin, are told to end, and start no MPI of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from commandline import TRAIN, complaints
from launch import environment, mpirun

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


IMPORTED = """
import sys
from gala_mpi import train, evaluate
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
