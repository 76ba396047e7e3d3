"""The page of results: what it says of numbers whose answer is known, and that it is made of those in results/."""

from __future__ import annotations

import csv
import itertools
import math

import numpy as np
import pytest
from synthetic import Synthetic

import claims
import digest
import results
from gala_mpi import open_run
from kept import at_hours, read
from launch import ROOT

NAMES = {"ring": "GALA, ring", "a2c": "A2C", "ring-half": "half", "ring-twice": "twice", "a2c-half": "h", "a2c-twice": "t"}
GAMES = ("MinAtar/Breakout-v1", "MinAtar/Asterix-v1")
COLUMNS = ("steps", "updates", "hours", "score", "area", "played", "games", "distance", "ratio", "cosine", "lag")


def made_up(folder, part, methods, agents, numbers, seeds=4, games=GAMES):
    """Write a part whose runs have the numbers that a function gives, of method, agents and seed; their curves rise evenly."""
    place = folder / part
    place.mkdir(parents=True)
    with open(place / "runs.csv", "w", newline="") as runs, open(place / "curves.csv", "w", newline="") as curves:
        rows, points = csv.writer(runs), csv.writer(curves)
        rows.writerow(["env", "method", "agents", "seed", *COLUMNS, "machine", "packages"])
        points.writerow(["env", "method", "agents", "seed", "steps", "hours", "score"])
        for env, method, n, seed in itertools.product(games, methods, agents, range(seeds)):
            told = dict.fromkeys(COLUMNS, math.nan) | {"hours": 1.0} | numbers(method, n, seed)
            rows.writerow([env, method, n, seed, *(told[name] for name in COLUMNS), "a machine", "a package"])
            for k in range(1, 21):
                points.writerow([env, method, n, seed, 100 * k, told["hours"] * k / 20, told["score"] * k / 20])
    return read(folder, [part], NAMES)


def better_when_large(method, agents, seed):
    """GALA's runs score 10 and more; those of A2C as much on 2 agents, and on 32 less than half of the best run's, but one."""
    broken = method == "a2c" and agents == 32 and seed
    return {"score": 4.0 if broken else 10 + seed / 10, "area": 1.0, "cosine": 0.3 if method == "a2c" else 0.1 + seed / 100}


def test_convergent_runs_are_counted_with_wilson_s_interval(tmp_path):
    found = claims.convergent(made_up(tmp_path, "minatar", ("ring", "a2c"), (2, 32), better_when_large))
    shares = {row[:2]: row[2:] for row in found.tables[0].rows}
    assert {cell: (good, of) for cell, (good, of, _) in shares.items()} == {
        (32, "GALA, ring"): (8, 8),
        (32, "A2C"): (8, 8),
        (512, "GALA, ring"): (8, 8),
        (512, "A2C"): (2, 8),
    }
    n, p, z = 8, 2 / 8, 1.959963984540054
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (p, (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))
    assert shares[512, "A2C"][2] == pytest.approx(expected)
    assert found.verdict == "shown"
    assert [limit for _, limit in found.tables[1].rows] == pytest.approx([5.15, 5.15])


@pytest.mark.parametrize("ours, verdict", [(2.0, "shown"), (-2.0, "opposite"), (0.0, "not shown")])
def test_a_verdict_is_by_the_interval_of_the_difference(tmp_path, ours, verdict):
    def scores(method, agents, seed):
        return {"score": 10 + (ours if method == "ring" else 0) + seed / 10, "area": 1.0}

    kept = made_up(tmp_path, "minatar", ("ring", "a2c"), (8,), scores)
    found = claims.equal_steps(kept)
    (row,) = [row for row in found.tables[0].rows if row[1] == "A2C"]
    largest = max(run["score"] for run in kept.runs)
    assert found.verdict == verdict
    assert row[5].value == pytest.approx(ours / largest)
    assert row[6].value == {2.0: 1, -2.0: 0, 0.0: 0.5}[ours]


def test_equal_hours_are_those_when_the_faster_has_ended(tmp_path):
    """A2C takes twice as long for the same curve: half-way it has half of the score."""

    def numbers(method, agents, seed):
        return {"score": 10 + seed / 100, "hours": 1.0 if method == "ring" else 2.0}

    kept = made_up(tmp_path, "minatar", ("ring", "a2c"), (8,), numbers)
    found = claims.equal_hours(*(read(tmp_path, [part], NAMES) for part in ("network", "straggler")), kept)
    (row,) = found.tables[0].rows
    assert row[2:4] == (60, 120)
    mean = np.mean([10 + seed / 100 for seed in range(4)])
    assert row[4].value == pytest.approx(0.5 * mean / 10.03)
    assert found.verdict == "shown"


def test_a_score_is_that_of_the_last_twentieth_that_had_ended():
    curve = np.array([[100, 0.1, math.nan], [200, 0.2, 3], [300, 0.4, math.nan], [400, 0.5, 5]])
    found = at_hours(curve, np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 9]))
    assert found.tolist() == pytest.approx([math.nan, math.nan, 3, 3, 3, 5, 5], nan_ok=True)


def test_published_scores_stand_beside_those_of_atari_games(tmp_path):
    def numbers(method, agents, seed):
        return {"score": 10 + seed, "played": 20}

    found = claims.atari(made_up(tmp_path, "atari", ("ring", "a2c"), (2,), numbers, games=("breakout", "pong")))
    assert [row[:4] for row in found.tables[0].rows][:2] == [("breakout", 32, "GALA, ring", 4), ("breakout", 32, "A2C", 4)]
    rows = {row[0]: row for row in found.tables[1].rows}
    assert rows["A2C (SB3 zoo)"][1:5] == ("280 ± 122", "17.3 ± 3.2", 10, 16)
    assert rows["A3C (ChainerRL)"][1:3] == ("570", "–")  # Pong is not among its games


def test_gradients(tmp_path):
    found = claims.diversity(made_up(tmp_path, "minatar", ("ring", "a2c"), (8,), better_when_large))
    assert found.verdict == "shown"
    assert found.tables[0].rows[0][3].value == pytest.approx(0.1 + np.mean([0, 1, 2, 3]) / 100)


def test_each_has_the_best_of_its_rates(tmp_path):
    """GALA scores 8 at the rule's rate, and 11 at twice that; A2C 10 at the rule's, and less at others."""
    at = {"ring": 8, "ring-twice": 11, "ring-half": 6, "a2c": 10, "a2c-half": 9, "a2c-twice": 7}

    def numbers(method, agents, seed):
        return {"score": at[method] + seed / 10, "area": 1.0}

    kept = made_up(tmp_path, "minatar", ("ring", "a2c"), (8, 2), numbers)
    rates = made_up(tmp_path, "rates", ("ring-half", "ring-twice", "a2c-half", "a2c-twice"), (8,), numbers)
    found = claims.rates(kept, rates)
    assert found.verdict == "shown"
    assert "GALA, ring at 2 times the rule's rate and A2C at 1 times" in found.sentence
    assert [row[:3] for row in found.tables[0].rows] == [(name, x, 8) for name in ("GALA, ring", "A2C") for x in (0.5, 1, 2)]
    assert [row[3].value for row in found.tables[0].rows] == pytest.approx(
        [(at[method] + 0.15) / 11.3 for method in ("ring-half", "ring", "ring-twice", "a2c-half", "a2c", "a2c-twice")]
    )


@pytest.mark.parametrize("power, verdict", [(1.0, "shown"), (2.0, "not shown")])
def test_the_ball_is_linear_in_the_rate_or_not(tmp_path, power, verdict):
    def numbers(method, agents, seed):
        return {"distance": claims.rate(method)[1] ** power * (1 + seed / 50), "ratio": 0.5, "score": 1.0}

    kept = made_up(tmp_path, "minatar", ("ring", "a2c"), (8,), numbers)
    rates = made_up(tmp_path, "rates", ("ring-half", "ring-twice"), (8,), numbers)
    assert claims.exponent(claims.over_ring(rates, kept)).value == pytest.approx(power)
    assert claims.ball(rates, kept).verdict == verdict


@pytest.mark.parametrize("ratio, verdict", [(1.05, "shown"), (1.2, "not shown")])
def test_a_distance_above_its_bound_is_not_shown(tmp_path, ratio, verdict):
    """Where it is linear in the rate."""

    def numbers(method, agents, seed):
        return {"distance": claims.rate(method)[1] * (1 + seed / 50), "ratio": ratio, "score": 1.0}

    kept = made_up(tmp_path, "minatar", ("ring", "a2c"), (8,), numbers)
    rates = made_up(tmp_path, "rates", ("ring-half", "ring-twice"), (8,), numbers)
    assert claims.ball(rates, kept).verdict == verdict


@pytest.mark.parametrize(
    "exchange, scores, played, games",
    [
        ("gossip", {-1: [1, 3], 0: [20, 30], 1: [40, 50]}, 2, 2),
        ("gossip", {-2: [5, 7, 9]}, 7, 3),  # of moving averages
        ("none", {-1: [-21, -21], 0: [4, 6], 1: [8, 10]}, 7, 4),
    ],
)
def test_what_is_played_is_the_final_policy(tmp_path, exchange, scores, played, games):
    run = Synthetic(tmp_path / "run", exchange=exchange).evaluate(1, {-1: [99]}).evaluate(2, scores)
    assert digest.evaluated(open_run(run.path)) == {"played": played, "games": games}


def test_without_any_run_every_claim_is_open(tmp_path):
    results.main(results.Options(results=tmp_path, to=tmp_path / "docs"))
    assert (tmp_path / "docs" / "results.md").read_text().count("not tried") > 8


def test_the_page_is_made_of_what_is_kept(tmp_path):
    results.main(results.Options(to=tmp_path))
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text(), "python analysis/results.py"
    names = {path.name for path in (tmp_path / "results").iterdir()}
    assert names == {path.name for path in (ROOT / "docs" / "results").iterdir()}
