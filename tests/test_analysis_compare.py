"""Comparisons at a common step and hour, on runs whose scores are known functions of their steps."""

from __future__ import annotations

import csv
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from synthetic import scored

import aggregates
import common
import compare
import robustness
from gala_mpi.run import open_run
from groups import grouped, load
from published import HUMAN, RANDOM
from script import main

STEPS = 80  # of an update


def rows_of(said) -> list[dict]:
    return [dict(zip(said.table.headings, row)) for row in said.table.rows]


def mean_until(steps: float, score) -> float:
    """The mean of the last 100 scores at `steps`, the plain way."""
    last = int(steps // STEPS)
    return sum(float(np.float32(score(float(STEPS * n)))) for n in range(last - 99, last + 1)) / 100


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_runs_of_unequal_budgets_are_compared_at_a_common_step_and_hour(tmp_path):
    """Every run learns as the others do, by steps; those of A2C end after an eighth of them, at half the speed."""
    for seed in range(3):
        scored(tmp_path / f"g{seed}", 1600, lambda s: s / 1000, seed=seed)
        scored(tmp_path / f"a{seed}", 200, lambda s: s / 1000, seconds=2.0, seed=seed, exchange="allreduce")
    found, _ = load([tmp_path])
    said = compare.answer(found, compare.Compare(runs=()))
    by_steps, by_hours = rows_of(said)
    assert (by_steps["group"], by_steps["base"], by_steps["game"], by_steps["at"]) == (
        "GALA ring",
        "A2C",
        "pong",
        "16,000 steps",
    )
    assert by_steps["P(improvement)"] == (0.5, 0.5, 0.5) and by_steps["IQM difference"] == (0, 0, 0)
    assert by_steps["area difference"] == (0, 0, 0) and (by_steps["runs"], by_steps["base's runs"]) == (3, 3)
    assert by_hours["at"] == "0.1111 hours" and by_hours["P(improvement)"].value == 1  # 400 updates against 200
    expected = mean_until(400 * STEPS, lambda s: s / 1000) - mean_until(200 * STEPS, lambda s: s / 1000)
    assert by_hours["IQM difference"].value == pytest.approx(expected)
    assert "pong: its runs differ in total_steps: 16,000 (3 of A2C); 128,000 (3 of GALA ring)" in said.notes
    assert any(note.startswith("pong: compared at 16,000 steps, where ") for note in said.notes)


def test_no_run_has_more_steps_to_converge_than_others(tmp_path):
    """Both learn alike, by steps; the one that goes on for eight times as long passes the threshold after the other's end."""
    scored(tmp_path / "g", 1600, lambda s: s / 1000)
    scored(tmp_path / "a", 200, lambda s: s / 1000, exchange="allreduce")
    found, _ = load([tmp_path])
    for steps, limit, converged in ((None, 15, 0), (None, 10, 2), (12_000, 10, 0), (100_000, 90, 1)):
        said = robustness.answer(found, robustness.Robustness(runs=(), threshold={"pong": limit}, steps=steps))
        assert sum(row["convergent"] for row in rows_of(said)) == converged
        assert all(row["at"] == f"{steps or 16_000:,} steps" for row in rows_of(said))
        assert f"at {steps or 16_000:,} steps" in said.figure.axes[0].get_title()
    assert len(rows_of(said)) == 1 and any(note.startswith(f"{tmp_path}/a: has episodes up to 16,000") for note in said.notes)


def test_a_run_that_was_cut_short_is_left_out_and_told(tmp_path):
    for seed in range(3):
        scored(tmp_path / f"g{seed}", 200, lambda s: s / 1000, seed=seed)
        scored(tmp_path / f"a{seed}", 200, lambda s: s / 2000, seed=seed, exchange="allreduce")
    cut = scored(tmp_path / "cut", 20, lambda s: 0 * s - 21, seed=9, total_steps=16_000)
    nearly = scored(tmp_path / "nearly", 190, lambda s: s / 1000, seed=10, total_steps=16_000)
    found, _ = load([tmp_path])
    point = common.point(grouped(found, "method"), "steps")
    assert point.x == 190 * STEPS and str(point) == "15,200 steps"
    assert [run.path for run in point.groups["GALA ring"]] == [tmp_path / "g0", tmp_path / "g1", tmp_path / "g2", nearly]
    assert point.notes == [f"{cut}: has episodes up to 1,600 steps only; left out at 15,200 steps"]
    said = compare.answer(found, compare.Compare(runs=()))
    row = rows_of(said)[0]
    assert (row["runs"], row["base's runs"], row["P(improvement)"].value) == (4, 3, 1) and point.notes[0] in said.notes


def test_groups_of_which_no_run_has_finished_count_with_their_longest(tmp_path):
    for exchange in ("gossip", "allreduce"):
        for number in (30, 150):
            scored(tmp_path / f"{exchange}{number}", number, lambda s: s, exchange=exchange, total_steps=16_000)
    point = common.point(grouped(load([tmp_path])[0], "method"), "steps")
    assert point.x == 150 * STEPS and [len(runs) for runs in point.groups.values()] == [1, 1]


def test_scores_and_areas_at_a_step(tmp_path):
    """A score of 2 for 100 updates, then of 10 for another 100."""
    run = open_run(scored(tmp_path / "r", 200, lambda s: np.where(s > 8000, 10, 2)))
    [group] = grouped([run], "method")
    for updates_done in (100, 150, 200):
        point = common.point([group], "steps", wanted=updates_done * STEPS)
        later = updates_done - 100
        assert point.scores("GALA ring") == pytest.approx([(2 * (100 - later) + 10 * later) / 100])
        means = [2.0] * 100 + [(2 * (100 - k) + 10 * k) / 100 for k in range(1, later + 1)]
        # Each mean holds from its update to the next one, the first one from the start.
        assert point.areas("GALA ring") == pytest.approx([(means[0] * 2 + sum(means[1:-1])) / updates_done])


def test_several_games_have_rows_of_their_own_and_one_together(tmp_path):
    ours = {"pong": [10, 12, 14], "breakout": [100, 101]}
    base = {"pong": [11, 12, 8], "breakout": [101, 103]}
    for game in ours:
        for exchange, scores in (("gossip", ours[game]), ("allreduce", base[game])):
            for seed, score in enumerate(scores):
                scored(tmp_path / f"{game}-{exchange}-{seed}", 100, lambda s, x=score: 0 * s + x, env=game, exchange=exchange)
    scored(tmp_path / "c1", 100, lambda s: s, env="CartPole-v1")
    scored(tmp_path / "c2", 100, lambda s: s, env="CartPole-v1", exchange="allreduce")
    said = compare.answer(load([tmp_path])[0], compare.Compare(runs=()))
    rows = {row["game"]: row for row in rows_of(said)[:4]}
    assert list(rows) == ["CartPole-v1", "breakout", "pong", "all games"]
    pong = (0 + 0 + 1 + 1 + 0.5 + 1 + 1 + 1 + 1) / 9
    breakout = (0 + 0 + 0.5 + 0) / 4
    assert rows["pong"]["P(improvement)"].value == pytest.approx(pong)
    assert rows["breakout"]["P(improvement)"].value == pytest.approx(breakout)
    assert rows["all games"]["P(improvement)"].value == pytest.approx((pong + breakout) / 2)
    assert rows["pong"]["scores"] == "points" and rows["all games"]["scores"] == "normalised"

    def normalised(scores):
        ends = {game: (RANDOM.scores[game][0], HUMAN.scores[game][0]) for game in scores}
        values = sorted((s - ends[g][0]) / (ends[g][1] - ends[g][0]) for g in scores for s in scores[g])
        return sum(values[1:4]) / 3  # of five, one is cut off at either end

    assert rows["all games"]["IQM difference"].value == pytest.approx(normalised(ours) - normalised(base))
    assert rows["all games"]["area difference"].value == pytest.approx(normalised(ours) - normalised(base))
    assert "all games: without CartPole-v1, which has no normalised score" in said.notes


def test_all_pairs_and_the_csv_holds_what_is_drawn(tmp_path, monkeypatch, capsys):
    for n, exchange in enumerate(("gossip", "allreduce", "none")):
        for seed in range(4):
            scored(tmp_path / f"{exchange}{seed}", 100, lambda s, x=n + seed / 2: 0 * s + x, exchange=exchange)
    monkeypatch.chdir(tmp_path)
    main(compare.answer, compare.Compare, "", [".", "--all-pairs", "--out", "c.png", "--table", "t.csv"])
    table, drawn = (list(csv.DictReader(open(name))) for name in ("t.csv", "c.csv"))
    pairs = [("GALA ring", "independent"), ("GALA ring", "A2C"), ("independent", "A2C")]
    assert [(row["group"], row["base"]) for row in table] == [pair for pair in pairs for _ in range(2)]
    points = [row for row in drawn if row["panel"] == "improvement"]
    assert len(points) == len(table)
    for row, point in zip(table, points):
        assert (row["group"], row["base"], row["at"]) == (point["group"], point["base"], point["at"])
        for name, column in (("value", ""), ("low", " low"), ("high", " high")):
            assert float(point[name]) == float(row[f"P(improvement){column}"])
    for label in ("GALA ring", "A2C", "independent"):
        profile = [row for row in drawn if row["panel"] == "profile" and row["group"] == label]
        assert float(profile[0]["value"]) == 1 and float(profile[-1]["value"]) == 0
    assert {row["panel"] for row in drawn} == {"improvement", "profile"}


def test_times_to_a_threshold_have_intervals(tmp_path):
    """Runs of GALA reach 0 with the mean of 100 scores at known updates; one of A2C's three never does, and ends early."""
    for seed, first in enumerate((100, 150, 200, 300)):
        scored(tmp_path / f"g{seed}", 400, lambda s, x=first: np.where(s > STEPS * x, 1, -1), seed=seed)
    for seed, first in enumerate((120, 240)):
        scored(tmp_path / f"a{seed}", 400, lambda s, x=first: np.where(s > STEPS * x, 1, -1), seed=seed, exchange="allreduce")
    scored(tmp_path / "a2", 110, lambda s: 0 * s - 1, seed=3, exchange="allreduce")
    said = compare.answer(load([tmp_path])[0], compare.Compare(runs=(), threshold={"pong": 0}))
    by_steps, by_hours = rows_of(said)
    ours = [STEPS * (first + 50) for first in (100, 150, 200, 300)]
    assert by_steps["to threshold"] == ((ours[1] + ours[2]) / 2, ours[0], ours[3])
    assert by_steps["base to threshold"] == (STEPS * 290, STEPS * 170, np.inf)
    assert by_hours["to threshold"].value == pytest.approx((200 + 250) / 2 / 3600)
    ended = "pong A2C: 1 run below the threshold ended before others reached it, and counts as never reaching it"
    assert ended in said.notes


def test_a_base_of_a_game_that_no_other_has_is_not_taken(tmp_path):
    scored(tmp_path / "a", 100, lambda s: s, env="breakout", exchange="allreduce")
    scored(tmp_path / "g", 100, lambda s: s)
    scored(tmp_path / "n", 100, lambda s: s, exchange="none")
    said = compare.answer(load([tmp_path])[0], compare.Compare(runs=()))
    assert [(row["group"], row["base"]) for row in rows_of(said)] == [("independent", "GALA ring")] * 2
    assert "A2C: has no runs of a game in common with the base; left out" in said.notes


@pytest.mark.parametrize("module", [compare, robustness])
@pytest.mark.parametrize(
    "words, said",
    [
        (["pongg", "15"], "--threshold pongg 15: no run of pongg is there; one of pong is expected"),
        (["pong", "nan"], "--threshold pong nan: a score that is a finite number is expected"),
    ],
)
def test_a_threshold_without_sense_is_refused(tmp_path, module, words, said, monkeypatch, capsys):
    refused(tmp_path, module, ["--threshold", *words], said, monkeypatch, capsys)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--steps", "0"], "--steps 0.0: a number above 0 is expected"),
        (["--hours", "inf"], "--hours inf: a number above 0 is expected"),
        (["--steps", "1e9"], "--steps 1e+09: no run of pong has come so far; the longest has 8,000 steps"),
    ],
)
def test_a_step_without_sense_is_refused(tmp_path, words, said, monkeypatch, capsys):
    for module in (compare, robustness) if "--steps" in words else (compare,):
        refused(tmp_path / module.__name__, module, words, said, monkeypatch, capsys)


def refused(tmp_path, module, words, said, monkeypatch, capsys):
    scored(tmp_path / "g", 100, lambda s: s)
    scored(tmp_path / "a", 100, lambda s: s, exchange="allreduce")
    monkeypatch.chdir(tmp_path)
    options = {compare: compare.Compare, robustness: robustness.Robustness}[module]
    with pytest.raises(SystemExit) as ended:
        main(module.answer, options, "", [".", *words])
    assert (ended.value.code, capsys.readouterr().err) == (2, f"{sys.modules[module.__name__].__name__}.py: {said}\n")


# Groups over games.


def test_aggregates_are_those_of_a_plain_loop(tmp_path):
    """Constant scores: an area is a score."""
    scores = {"pong": [9, 12, 14, -21], "breakout": [10, 20, 31.8]}
    for game, values in scores.items():
        for seed, score in enumerate(values):
            scored(tmp_path / f"{game}{seed}", 100, lambda s, x=score: 0 * s + x, env=game, seed=seed)
    scored(tmp_path / "c", 100, lambda s: 0 * s + 7, env="CartPole-v1")
    scored(tmp_path / "n", 100, lambda s: 0 * s + 7, exchange="none")
    said = aggregates.answer(load([tmp_path])[0], aggregates.Aggregates(runs=()))
    rows = {(row["game"], row["group"]): row for row in rows_of(said)}
    assert list(rows)[-1] == ("all games", "GALA ring") and len(rows) == 5
    pong = rows["pong", "GALA ring"]
    assert (pong["runs"], pong["at"], pong["scores"], pong["median"]) == (4, "8,000 steps", "points", None)
    assert (pong["mean"].value, pong["IQM"].value, pong["area"].value) == (14 / 4, (9 + 12) / 2, 14 / 4)
    normal = {
        game: [(s - RANDOM.scores[game][0]) / (HUMAN.scores[game][0] - RANDOM.scores[game][0]) for s in values]
        for game, values in scores.items()
    }
    gaps = {game: sum(max(0, 1 - s) for s in values) / len(values) for game, values in normal.items()}
    assert pong["optimality gap"].value == pytest.approx(gaps["pong"])
    both = rows["all games", "GALA ring"]
    means = [sum(values) / len(values) for values in normal.values()]
    everything = sorted(normal["pong"] + normal["breakout"])
    assert both["mean"].value == both["median"].value == pytest.approx(sum(means) / 2)
    assert both["IQM"].value == pytest.approx(sum(everything[1:6]) / 5)
    assert both["optimality gap"].value == pytest.approx(sum(gaps.values()) / 2)
    assert both["area"].value == pytest.approx(sum(means) / 2) and both["IQM"].low < both["IQM"].value < both["IQM"].high
    assert rows["CartPole-v1", "GALA ring"]["optimality gap"] is None
    assert "all games: without CartPole-v1, which has no normalised score" in said.notes
    assert "independent: has no runs of breakout; its row of all games is not there" in said.notes
    assert dict(zip(said.points.headings, said.points.rows[0]))["IQM"] == 7


def test_aggregates_are_taken_at_a_common_hour_if_that_is_asked_for(tmp_path):
    scored(tmp_path / "g", 400, lambda s: s)
    scored(tmp_path / "a", 200, lambda s: s, seconds=3.0, exchange="allreduce")
    for at, place, updates in (("steps", "16,000 steps", (200, 200)), ("hours", "0.1111 hours", (133, 400))):
        rows = rows_of(aggregates.answer(load([tmp_path])[0], aggregates.Aggregates(runs=(), at=at)))
        assert [row["at"] for row in rows] == [place] * 2
        expected = [mean_until(STEPS * number, lambda s: s) for number in updates]
        assert [row["mean"].value for row in rows] == pytest.approx(expected)


def test_the_sentence_is_about_all_games_and_not_about_the_luckiest(tmp_path):
    for env, gain in (("pong", 1), ("breakout", -1)):
        for seed in range(4):
            scored(tmp_path / f"{env}-g{seed}", 100, lambda s, x=seed + gain: 0 * s + x, env=env, seed=seed)
            scored(tmp_path / f"{env}-a{seed}", 100, lambda s, x=seed: 0 * s + x, env=env, seed=seed, exchange="allreduce")
    said = compare.answer(load([tmp_path])[0], compare.Compare(runs=()))
    assert "with probability of improvement 0.5 [" in said.sentence and said.sentence.endswith("(all games, common steps).")


def test_the_shortest_finished_run_says_where_runs_are_compared(tmp_path):
    for name, number, exchange in (("g1", 150, "gossip"), ("g2", 300, "gossip"), ("a", 200, "allreduce")):
        scored(tmp_path / name, number, lambda s: s, exchange=exchange)
    point = common.point(grouped(load([tmp_path])[0], "method"), "steps")
    assert point.x == 150 * STEPS and {label: len(runs) for label, runs in point.groups.items()} == {"A2C": 1, "GALA ring": 2}
    assert point.notes == [
        f"pong: compared at 12,000 steps, where {tmp_path / 'g1'} ends; the longest run goes on to 24,000 steps"
    ]
