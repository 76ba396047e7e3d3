"""What is said where there is nothing to tell apart, or no place to compare."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from synthetic import Synthetic, episodes, mixes, scored, sketches, updates

import aggregates
import common
import compare
import consensus
import gradients
import learning_curves
import robustness
import scores
import staleness
import throughput
from gala_mpi.run import RunError
from groups import grouped, load
from script import Options
from tables import show


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_equal_scores_are_no_victory(tmp_path):
    for name, exchange, score in (("g", "gossip", 5), ("a", "allreduce", 5), ("n", "none", 4)):
        run, rows = Synthetic(tmp_path / name, agents=1, exchange=exchange, total_steps=8000), updates(100)
        run.write(0, updates=rows, episodes=episodes(rows, score))
        run.evaluate(1, {-1: [score, score]})
    found, _ = load([tmp_path])
    two = [run for run in found if run.config["exchange"] != "none"]
    said = compare.answer(two, compare.Compare(runs=()))
    assert said.sentence == "GALA ring and A2C score alike, with probability of improvement 0.5 (pong, 8,000 steps)."
    asked = {aggregates: aggregates.Aggregates(runs=()), learning_curves: learning_curves.Curves(runs=()), scores: Options(())}
    said = {module: [module.answer(runs, options).sentence for runs in (two, found)] for module, options in asked.items()}
    assert said[aggregates] == [
        "pong: A2C and GALA ring score alike, with an IQM of 5.",
        "pong: A2C and GALA ring score alike, with an IQM of 5, the largest of 3.",
    ]
    assert said[learning_curves] == [
        "pong: A2C and GALA ring score alike at 7,600 steps, 5.",
        "pong: A2C and GALA ring score alike at 7,600 steps, 5, the most of 3.",
    ]
    assert said[scores] == [
        "pong: the final policies of A2C and GALA ring score alike, 5 on average.",
        "pong: the final policies of A2C and GALA ring score alike, 5 on average, the most of 3 groups.",
    ]
    said = robustness.answer(found, robustness.Robustness(runs=(), threshold={"pong": 5}))
    assert said.sentence == "2 of 3 runs converge by 8,000 steps; the fewest of pong independent on 16 environments: 0 of 1."
    said = robustness.answer(two, robustness.Robustness(runs=(), threshold={"pong": 9}))
    assert said.sentence == "0 of 2 runs converge by 8,000 steps."


def test_runs_that_are_alike_in_all_are_said_to_be(tmp_path):
    for exchange in ("gossip", "allreduce"):
        run, rows = Synthetic(tmp_path / exchange, exchange=exchange), updates(100)
        for rank in range(2):
            heard = {"mixes": mixes(rows, 1 - rank)} if exchange == "gossip" else {}
            alike = sketches(rows, parameters=np.full((10, 1), 3.0 * rank), gradient=np.ones((10, 1)))
            run.write(rank, updates=rows, sketches=alike, **heard)
    found, _ = load([tmp_path])
    said = {module: module.answer(found, Options(())).sentence for module in (throughput, gradients, consensus, staleness)}
    assert said[throughput] == "The fastest are pong A2C on 2 ranks and pong GALA ring on 2 ranks, with 640 frames/s."
    assert said[gradients] == "Gradients of two agents are equally alike in all groups: their correlation is 1.000 on average."
    assert said[consensus].startswith("At the last update looked at, the agents' distance to their mean is 2.12; ")
    assert (
        said[staleness] == "Half of the messages lag at most 0 updates behind and 95% at most 0; no update went without a mix."
    )


@pytest.mark.parametrize(
    "runs, gain, word", [(4, 0.5, ": no difference is shown"), (4, 9, ""), (1, 9, ", which with one run may be chance")]
)
def test_an_interval_that_holds_a_half_or_none_shows_no_difference(tmp_path, runs, gain, word):
    for seed in range(runs):
        scored(tmp_path / f"g{seed}", 100, lambda s, x=seed + gain: 0 * s + x, seed=seed)
        scored(tmp_path / f"a{seed}", 100, lambda s, x=seed: 0 * s + x, seed=seed, exchange="allreduce")
    said = compare.answer(load([tmp_path])[0], compare.Compare(runs=()))
    improvement = said.table.rows[0][said.table.headings.index("P(improvement)")]
    assert improvement.value == {0.5: 10 / 16, 9: 1}[gain] and (improvement.low > 0.5) == (not word)
    assert said.sentence == f"GALA ring scores more than A2C with probability {show(improvement)}{word} (pong, 8,000 steps)."


@pytest.fixture
def begun(tmp_path):
    """Two runs of a group end before those of the other one have ended an episode."""
    for seed in range(2):
        scored(tmp_path / f"a{seed}", 100, lambda s: 0 * s + 10, seed=seed, exchange="allreduce")
        run, rows = Synthetic(tmp_path / f"g{seed}", agents=1, seed=seed, total_steps=80_000), updates(1000)
        run.write(0, updates=rows, episodes=episodes(rows, 50.0)[500:])
    return tmp_path


def test_runs_that_have_not_begun_at_the_common_step_are_said_to_be_late(begun):
    found, _ = load([begun])
    notes = aggregates.answer(found, aggregates.Aggregates(runs=())).notes
    assert f"{begun / 'g0'}: has episodes from 40,080 steps on only; left out at 8,000 steps" in notes
    with pytest.raises(RunError) as error:
        compare.answer(found, compare.Compare(runs=()))
    late = f"{begun / 'g1'}: has episodes from 40,080 steps on only; left out at 8,000 steps"
    assert str(error.value) == f"A2C: no other group has runs of pong at 8,000 steps; {late}"
    with pytest.raises(RunError) as error:
        common.point(grouped(found[2:], "method"), "steps", wanted=9000)
    assert str(error.value) == "--steps 9,000: no episode of pong has ended there; the first one ends at 40,080 steps"


def test_a_line_is_not_ranked_where_it_has_no_value(begun):
    said = learning_curves.answer(load([begun])[0], learning_curves.Curves(runs=()))
    assert said.sentence == "pong: the score of A2C goes from 10 to 10."
