"""What `scores.py` and `gradients.py` say of runs whose right answers follow from how they were made (`synthetic.py`)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from synthetic import paced

import scores
from gala_mpi.run import RunError, open_run
from script import Answer, Options


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def said(*runs) -> Answer:
    return scores.answer([open_run(run.path) for run in runs], Options(runs=()))


def row(answer: Answer, method: str) -> dict:
    [found] = [row for row in answer.table.rows if row[1] == method]
    return dict(zip(answer.table.headings, found))


def test_the_final_score_is_that_of_the_newest_checkpoint(tmp_path):
    """Checkpoint 2, from before anything was learnt, is evaluated after 9, by sampled actions; 9 twice."""
    run = paced(tmp_path / "r", [1, 1], [10, 10])
    run.evaluate(9, {-1: [0, 0]}).evaluate(9, {-1: [20, 22], 0: [-21], 1: [-21]}).evaluate(2, {-1: [-20, -20]}, arg_max=False)
    answer = said(run)
    found = row(answer, "GALA ring")
    assert (found["mean"], found["checkpoint"], found["n"], found["episodes"]) == ("21", 9, 1, 2)
    assert found["best"] == "21 ± 1" and "most probable actions" in found["protocol"] and "21" in answer.sentence
    drawn = {(r[3], r[4]): r[-1] for r in answer.points.rows}
    assert drawn == {(2, False): -20, (9, True): 22}
    curve = answer.figure.axes[1].lines[0]
    assert (curve.get_xdata().tolist(), curve.get_ydata().tolist()) == ([2, 9], [-20, 21])


def test_one_checkpoint_is_no_curve(tmp_path):
    answer = said(paced(tmp_path / "r", [1, 1], [10, 10]).evaluate(9, {-1: [20, 22]}))
    assert len(answer.figure.axes) == 1 and not any("checkpoint" in note for note in answer.notes)


def test_a_newer_checkpoint_that_is_not_evaluated_is_named(tmp_path):
    run = paced(tmp_path / "r", [1, 1], [10, 10]).save(3, 7).evaluate(3, {-1: [20, 22]})
    answer = said(run)
    assert row(answer, "GALA ring")["checkpoint"] == 3
    assert f"{run.path}: its newest checkpoint, 7, is not evaluated; scores are of checkpoint 3" in answer.notes


def test_independent_agents_are_not_averaged(tmp_path):
    """Of two, each was played at checkpoint 4; at 5, the average alone. Another pair: the average alone."""
    run = paced(tmp_path / "r", [1, 1], [10, 10], exchange="none")
    run.evaluate(4, {0: [10, 12], 1: [20, 20], -1: [-21]}).evaluate(5, {-1: [-21, -21]})
    other = paced(tmp_path / "s", [1, 1], [10, 10], exchange="none").evaluate(5, {-1: [-21, -21]})
    answer = said(run, other)
    found = row(answer, "independent")
    assert (found["mean"], found["n"], found["checkpoint"]) == ("15.5 ± 4.5", 2, 4)
    for path in (run.path, other.path):
        reason = "its agents are independent, of which only the average was played at checkpoint 5; left out"
        assert any(f"{path}: {reason}" in note for note in answer.notes)
    with pytest.raises(RunError, match="its agents are independent, of which only the average was played"):
        said(other)


def test_scores_that_are_not_finite_are_left_out_and_counted(tmp_path):
    run = paced(tmp_path / "r", [1, 1], [10, 10]).evaluate(9, {-1: [20, float("nan"), 22]})
    answer = said(run)
    assert row(answer, "GALA ring")["mean"] == "21"
    assert f"{run.path}: 1 episodes of checkpoint 9 have a score that is not finite; left out" in answer.notes


def test_what_was_trained_stands_beside_every_score(tmp_path):
    run = paced(tmp_path / "r", [1, 1], [10, 10], num_envs=8).evaluate(9, {-1: [20, 22]})
    answer = said(run)
    ours, theirs = row(answer, "GALA ring"), row(answer, "A2C (SB3 zoo)")
    assert (ours["steps"], ours["environments"]) == (2 * 10 * 80, 16)
    assert (theirs["steps"], theirs["environments"]) == (10_000_000, 16) and "sampled actions" in theirs["protocol"]
    pole = paced(tmp_path / "s", [1, 1], [10, 10], env="CartPole-v1").evaluate(9, {-1: [500]})
    assert row(said(pole), "GALA ring")["protocol"] == "most probable actions, ± SE"
