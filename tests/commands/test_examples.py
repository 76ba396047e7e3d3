"""The programs of examples/, as their first lines say, on several numbers of ranks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from commandline import TRAIN, states
from gala_mpi import open_run
from gala_mpi.run import reader
from launch import ROOT, Job, environment, is_stopped, mpirun

EXAMPLES = ROOT / "examples"
WITHIN = 0.01  # of the accuracy of one process with all the data


def run(n: int, name: str, *flags: object) -> str:
    ended = mpirun(n, "-m", "mpi4py", EXAMPLES / name, *flags)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def accuracy(said: str) -> float:
    return float(re.search(r"accuracy (\S+) on 360 digits", said)[1])


@pytest.fixture(scope="module")
def of_one_process() -> float:
    found = accuracy(run(1, "digits.py"))
    assert found > 0.96
    return found


@pytest.mark.parametrize(
    "n, exchange", [(2, "gossip"), *(pytest.param(*each, marks=pytest.mark.long) for each in ((4, "gossip"), (4, "allreduce")))]
)
def test_digits_are_read_as_well_as_by_one_process(of_one_process, n, exchange):
    assert accuracy(run(n, "digits.py", "--exchange", exchange)) >= of_one_process - WITHIN


def test_nobody_waits_for_a_stopped_rank():
    """All others learn to the end while it stands still; then it does, and all average."""
    with Job(3, "-m", "mpi4py", EXAMPLES / "digits.py", "--epochs", 10, "--pause", 0.002) as job:
        job.wait_until(lambda: job.stdout.count("begins") == 3)
        stopped = job.ranks()[1]
        os.kill(stopped, signal.SIGSTOP)
        job.wait_until(lambda: is_stopped(stopped))
        job.wait_until(lambda: {"0", "2"} <= set(re.findall(r"rank (\d) has learnt", job.stdout)))
        assert is_stopped(stopped) and "rank 1 has learnt" not in job.stdout
        os.kill(stopped, signal.SIGCONT)
        assert job.wait().returncode == 0
        assert "rank 1 has learnt" in job.stdout and accuracy(job.stdout) > 0.8


@pytest.mark.long
@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_ppo_of_ones_own_learns(n):
    """CartPole: a policy that knows nothing has 22."""
    said = run(n, "ppo.py", "--steps", 60_000 if n < 4 else 40_000)
    scores = {int(rank): float(score) for rank, score in re.findall(r"rank (\d): (\S+) in the last 50 episodes", said)}
    assert sorted(scores) == list(range(n)) and min(scores.values()) > 60, said


@pytest.mark.parametrize("n", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 4))])
def test_a_model_of_stable_baselines_gossips(n):
    steps = 15_000
    said = run(n, "sb3_gossip.py", "--steps", steps)
    ranks = re.findall(r"rank (\d): (\S+) in the last \d+ episodes, (\d+) mixes", said)
    assert sorted(int(rank) for rank, _, _ in ranks) == list(range(n)), said
    assert {int(mixes) for _, _, mixes in ranks} == {-(-steps // (8 * 64)) + 1}  # before each rollout, and at the end
    assert min(float(score) for _, score, _ in ranks) > 60, said


def test_the_notebook_runs_after_the_command_that_it_names(tmp_path):
    """It lies in the repository without what it has put out."""
    book = nbformat.read(EXAMPLES / "policy.ipynb", as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in book.cells if cell.cell_type == "code")
    (tmp_path / "examples").mkdir()
    command = re.search(r"^ +mpirun -n 2 python (.*--total-steps) 100000 (.*)$", book.cells[0].source, re.MULTILINE)
    trained = mpirun(2, *shlex.split(f"{command[1]} 10000 {command[2]}"), cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    nbclient.NotebookClient(book, resources={"metadata": {"path": str(tmp_path / "examples")}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    assert [output.text.count("over 10 episodes") for output in outputs if output.output_type == "stream"] == [2]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert (tmp_path / "examples" / "policy.pt").exists()


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> dict[str, str]:
    """The variables with which the package is found, installed from a copy of it that is gone."""
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    shutil.copytree(EXAMPLES / "package", source, dirs_exist_ok=True)
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, source)
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(source)
    return {"PYTHONPATH": os.pathsep.join([environment()["PYTHONPATH"], str(site)])}


RANKS = [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 4))]


@pytest.mark.parametrize("n", RANKS)
def test_a_package_of_ones_own_under_the_command(installed, tmp_path, n):
    run = tmp_path / "run"
    words = ("--env", "beam:Beam-v0", "--network", "beam.networks:apart", "--learner", "ppo", "--rollout-length", 32)
    trained = mpirun(n, *TRAIN, *words, "--total-steps", 3000, "--run-dir", run, env=installed, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert len(states(run, n)) == n
    played = mpirun(n, "-m", "gala_mpi.evaluate", run, "--episodes", 2, env=installed, cwd=tmp_path)
    assert played.returncode == 0 and "beam:Beam-v0, checkpoint" in played.stdout, played.stderr


@pytest.mark.parametrize("n", RANKS)
def test_a_program_of_ones_own_that_trains_it(installed, tmp_path, n):
    """It learns, all stop at its score, and every command finds what it has trained."""
    program, run = Path(shutil.copy(EXAMPLES / "package" / "train_beam.py", tmp_path)), tmp_path / "run"
    done = mpirun(n, program, "--run-dir", run, "--score", 100, env=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    score, steps = re.search(r"^a score of (\d+): the ball stays for (\d+) steps$", done.stdout, re.MULTILINE).groups()
    assert int(score) >= 100 and int(steps) > 0
    said = {
        int(rank): int(update)
        for rank, update in re.findall(r"rank (\d+) has saved checkpoint \d+ at update (\d+)", done.stdout)
    }
    assert said == {rank: int(state.learner["updates"]) for rank, state in enumerate(states(run, n))}
    stored = reader.read_config(run)
    assert (stored.env, stored.network) == ("train_beam:windy", "beam.networks:apart")
    played = mpirun(1, "-m", "gala_mpi.evaluate", run, "--episodes", 2, env=installed, cwd=tmp_path)
    assert played.returncode == 0 and len(open_run(run).evaluations), played.stderr
