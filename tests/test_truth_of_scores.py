"""What `scores.py` and `gradients.py` say of runs whose right answers follow from how they were made (`synthetic.py`)."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from synthetic import Synthetic, paced, sketches, updates

import gradients
import scores
import stats
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


def test_moving_averages_are_not_taken_for_agents_or_their_mean(tmp_path):
    apart = paced(tmp_path / "r", [1, 1], [10, 10], exchange="none").evaluate(4, {0: [10], 1: [20]}).evaluate(5, {-2: [-21]})
    assert row(said(apart), "independent")["checkpoint"] == 4
    run = paced(tmp_path / "s", [1, 1], [10, 10]).evaluate(4, {-1: [20]}).evaluate(5, {-2: [-21]})
    assert row(said(run), "GALA ring")["mean"] == "20"


def test_scores_that_are_not_finite_are_left_out_and_counted(tmp_path):
    run = paced(tmp_path / "r", [1, 1], [10, 10]).evaluate(9, {-1: [20, float("nan"), 22]})
    answer = said(run)
    assert row(answer, "GALA ring")["mean"] == "21"
    assert f"{run.path}: 1 episodes of checkpoint 9 have a score that is not finite; left out" in answer.notes


def test_episodes_that_were_cut_off_are_counted(tmp_path):
    """Of checkpoint 2 two of three were; 9 was evaluated anew with time enough."""
    run = paced(tmp_path / "r", [1, 1], [10, 10]).evaluate(9, {-1: [1]}, cut=1, max_steps=50)
    run.evaluate(2, {-1: [1, 2], 0: [3]}, cut=2, max_steps=5000).evaluate(9, {-1: [5]})
    cut = [note for note in said(run).notes if "cut off" in note]
    assert cut == [f"{run.path}: 2 of 3 episodes of checkpoint 2 were cut off after 5,000 steps"]


def test_what_was_trained_stands_beside_every_score(tmp_path):
    run = paced(tmp_path / "r", [1, 1], [10, 10], num_envs=8).evaluate(9, {-1: [20, 22]})
    answer = said(run)
    ours, theirs = row(answer, "GALA ring"), row(answer, "A2C (SB3 zoo)")
    assert (ours["steps"], ours["environments"]) == (2 * 10 * 80, 16)
    assert (theirs["steps"], theirs["environments"]) == (10_000_000, 16) and "sampled actions" in theirs["protocol"]
    pole = paced(tmp_path / "s", [1, 1], [10, 10], env="CartPole-v1").evaluate(9, {-1: [500]})
    assert row(said(pole), "GALA ring")["protocol"] == "most probable actions, ± SE"


# Correlation of gradients.


def alike(path, cosines: np.ndarray, **settings) -> Synthetic:
    """A run of two agents whose gradients have these cosines, one an update."""
    run, rows = Synthetic(path, **settings), updates(len(cosines))
    vectors = [np.array([[1, 0]] * len(cosines)), np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)]
    for rank, gradient in enumerate(vectors):
        run.write(rank, updates=rows, sketches=sketches(rows, every=1, gradient=gradient))
    return run


def correlation(*runs) -> dict:
    answer = gradients.answer([open_run(run.path) for run in runs], Options(runs=()))
    return dict(zip(answer.table.headings, answer.table.rows[0]))


def test_the_error_of_several_runs_is_their_spread(tmp_path):
    """Three runs of 0.2, 0.4 and 0.9 on average, of 10, 20 and 30 updates that hardly differ."""
    means = np.array([0.2, 0.4, 0.9])
    runs = [alike(tmp_path / f"{n}", mean + 0.01 * np.cos(np.arange(10 * (n + 1)) * np.pi)) for n, mean in enumerate(means)]
    row = correlation(*runs)
    assert (row["runs"], row["updates"]) == (3, 60)
    assert row["correlation"] == pytest.approx(0.5, abs=1e-6)
    assert row["±"] == pytest.approx(np.std(means, ddof=1) / 3**0.5, abs=1e-6)


def autocorrelated(random: np.random.Generator, number: int, rho: float) -> np.ndarray:
    values = [random.normal()]
    for noise in random.normal(size=number - 1):
        values.append(rho * values[-1] + (1 - rho**2) ** 0.5 * noise)
    return np.array(values)


@pytest.mark.parametrize("rho", [0.0, 0.2, 0.8])
def test_the_error_of_updates_that_are_alike_is_that_of_fewer(rho):
    """Of many series of 400 values, the means spread as the errors say."""
    random = np.random.default_rng(0)
    series = [autocorrelated(random, 400, rho) for _ in range(300)]
    spread = np.std([values.mean() for values in series], ddof=1)
    assert np.mean([stats.standard_error_in_a_row(values) for values in series]) == pytest.approx(spread, rel=0.12)
    assert np.isnan(stats.standard_error_in_a_row(np.ones(1))) and stats.standard_error_in_a_row(np.ones(5)) == 0


def test_the_error_of_one_run_heeds_how_alike_its_updates_are(tmp_path):
    cosines = 0.3 + 0.05 * autocorrelated(np.random.default_rng(1), 300, 0.8)
    row = correlation(alike(tmp_path / "r", cosines))
    assert row["correlation"] == pytest.approx(cosines.mean(), abs=1e-6)
    assert row["±"] == pytest.approx(stats.standard_error_in_a_row(cosines), rel=1e-3)
    assert row["±"] > 1.3 * stats.standard_error(cosines)


def test_stretches_of_one_run_are_no_two_runs(tmp_path):
    """Resumed with other settings, grouped as one method; then on three ranks."""
    run = alike(tmp_path / "r", np.full(20, 0.5), num_envs=8).resume(checkpoint=1, num_envs=32)
    rows = updates(20, after=20)
    for rank in range(2):
        run.write(rank, after_update=20, updates=rows, sketches=sketches(rows, every=1, gradient=np.ones((20, 1))))
    row = correlation(run)
    assert (row["runs"], row["updates"], row["correlation"]) == (1, 40, pytest.approx(0.75, abs=1e-6))
    run.resume(agents=3, checkpoint=2)
    rows = updates(5, after=40)
    for rank in range(3):
        run.write(rank, after_update=40, updates=rows, sketches=sketches(rows, every=1, gradient=np.ones((5, 1))))
    answer = gradients.answer([open_run(run.path)], Options(runs=()))
    found = {row[1]: row[3:5] for row in answer.table.rows}
    assert found == {2: (40, pytest.approx(0.75, abs=1e-6)), 3: (5, pytest.approx(1, abs=1e-6))}
