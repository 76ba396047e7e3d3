"""`--evaluate-minutes`: runs that are evaluated while they train, as a user starts them."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gala_mpi
import launch
from commandline import SMALL, STEPS_PER_UPDATE, complaints, parameters, start, states, train
from gala_mpi.run import checkpoints, evaluations, open_run
from launch import Job, mpirun

sys.path.insert(0, str(launch.ROOT / "analysis"))

LOCKSTEP = (*SMALL, "--staleness", 0, "--total-steps", 2 * 300 * STEPS_PER_UPDATE)
EVALUATE = ("-m", "gala_mpi.evaluate")
OFTEN = ("--evaluate-minutes", 0.005, "--evaluate-episodes", 3)


@pytest.fixture(scope="module")
def lockstep(tmp_path_factory) -> tuple[Path, str]:
    """A run that has been evaluated as often as could be, and what it said."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    return run, train(2, run, *LOCKSTEP, *OFTEN).stdout


def evaluators(job: Job) -> list[int]:
    """The processes of a job that evaluate."""
    return [pid for pid in job.processes() if b"play_alone" in launch._read(pid, "cmdline")]


def test_lockstep_is_bit_for_bit_that_without(lockstep, tmp_path):
    run, _ = lockstep
    train(2, tmp_path / "without", *LOCKSTEP)
    for mine, theirs in zip(parameters(run, 2), parameters(tmp_path / "without", 2), strict=True):
        assert np.array_equal(mine, theirs)
    (*_, last) = evaluations.read(run)
    assert last.checkpoint == checkpoints.newest(run) and last.while_training
    assert last.steps == sum(int(state.learner["steps"]) for state in states(run, 2))


def test_lockstep_is_evaluated_as_by_hand(lockstep):
    """The same games, of the same seeds, on any number of ranks; by the analysis and `watch` it is the newest evaluation."""
    run, said = lockstep
    before = open_run(run).evaluations
    (*_, (games, about)) = before
    words = ("--checkpoint", int(about["checkpoint"]), "--episodes", 3, "--policies", "mean")
    result = mpirun(2, *EVALUATE, run, *words)
    assert result.returncode == 0, result.stderr
    by_hand, by_hand_about = open_run(run).evaluations[-1]
    assert np.array_equal(np.sort(games), np.sort(by_hand))
    assert {**by_hand_about, "while_training": True, "time": about["time"]} == about
    assert about["score"] == pytest.approx(games["score"].mean()) and about["games"] == 3
    assert about["error"] == pytest.approx(games["score"].std(ddof=1) / np.sqrt(3))
    told = re.findall(
        r"^evaluation: checkpoint (\d+) scores ([\d.]+)(?: ± [\d.]+) in 3 games; best: checkpoint", said, re.MULTILINE
    )
    assert [(int(number), float(score)) for number, score in told] == [
        (int(each["checkpoint"]), pytest.approx(each["score"], abs=0.06)) for _, each in before
    ]


def test_the_best_checkpoint_is_the_one_that_evaluations_say(lockstep):
    from evaluations import evaluations as drawn

    run, _ = lockstep
    scores = evaluations.scores(run)
    there = {number: scores[number] for number in checkpoints.complete(run) if number in scores}
    best = max(there, key=lambda number: (there[number], number))
    assert checkpoints.best(run) == checkpoints.best_sound(run) == best
    policy = gala_mpi.load_policy(run, "best").module.network.state_dict()
    again = gala_mpi.load_policy(run, best).module.network.state_dict()
    assert all((policy[name] == again[name]).all() for name in policy)
    assert [each.checkpoint for each in drawn(open_run(run))[0]] == sorted(scores)
    seen = mpirun(1, "-m", "gala_mpi.watch", run)
    (*_, last) = evaluations.read(run)
    assert f"checkpoint {last.checkpoint} scores" in seen.stdout


def test_an_evaluation_that_is_killed_is_named_and_one_ends_with_its_rank(tmp_path):
    run = tmp_path / "run"
    flags = (*SMALL, "--total-steps", 10**9, "--evaluate-minutes", 0.01, "--evaluate-episodes", 1000)
    with start(2, run, *flags) as job:
        job.wait_until(lambda: evaluators(job))
        (first,) = evaluators(job)
        launch._signal(first, signal.SIGKILL)
        named = re.compile(
            r"^gala_mpi: warning: the evaluation of checkpoint \d+ has ended without a result \(killed by signal 9\)", re.M
        )
        job.wait_until(lambda: named.search(job.stderr))
        job.wait_until(lambda: set(evaluators(job)) - {first})
        (second,) = evaluators(job)
        assert os.sched_getaffinity(second) == set.union(*map(os.sched_getaffinity, job.ranks()))
        job.wait_until(lambda: checkpoints.newest(run))
        for rank in job.ranks():
            launch._signal(rank, signal.SIGKILL)
        while launch._lives(second):
            time.sleep(0.05)
    assert open_run(run).evaluations == [] and checkpoints.newest(run)
    train(2, run, "--resume", "--evaluate-minutes", "None", "--total-steps", 1)
    assert not list(run.rglob("*.tmp"))


def test_a_signal_ends_an_evaluation_at_once(tmp_path):
    run = tmp_path / "run"
    flags = (*SMALL, "--total-steps", 10**9, "--evaluate-minutes", 0.01, "--evaluate-episodes", 1000)
    with start(2, run, *flags) as job:
        job.wait_until(lambda: evaluators(job))
        os.kill(job.ranks()[0], signal.SIGUSR1)
        ended = job.wait()
    assert complaints(ended) == [] and "stopped early (SIGUSR1)" in ended.stdout
    assert not list(run.rglob("*.tmp")) and not open_run(run).evaluations


@pytest.mark.long
def test_agents_that_share_nothing_are_all_played(tmp_path):
    run = tmp_path / "run"
    train(2, run, *SMALL, "--exchange", "none", "--total-steps", 4000, "--evaluate-minutes", 5, "--evaluate-episodes", 2)
    ((games, about),) = open_run(run).evaluations
    assert set(games["policy"]) == {-1, 0, 1}
    assert about["games"] == 4 and about["score"] == games["score"][games["policy"] >= 0].mean()


@pytest.mark.long
def test_a_replay_is_evaluated_and_the_same(tmp_path):
    flags = ("--total-steps", 2 * 200 * STEPS_PER_UPDATE, "--evaluate-minutes", 5, "--evaluate-episodes", 2)
    train(2, tmp_path / "run", *SMALL, *flags)
    replayed = train(2, tmp_path / "again", "--replay", tmp_path / "run")
    assert "bit for bit" in replayed.stdout
    (games, _), (again, _) = (open_run(tmp_path / name).evaluations[-1] for name in ("run", "again"))
    assert np.array_equal(games, again)
