"""Learning curves of groups whose runs are known functions of their steps: lines of seeds, n, smoothing, scales."""

from __future__ import annotations

import csv

import matplotlib.pyplot as plt
import numpy as np
import pytest
from synthetic import Synthetic, episodes, scored, updates

import curves
import learning_curves
from groups import grouped, load
from learning_curves import Curves
from script import main


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def line(folder):
    return learning_curves.by_game(grouped(load([folder])[0], "method"))[0][0]


def test_a_group_goes_on_where_a_run_ends_and_says_how_many_are_left(tmp_path):
    """Constant scores of 1, 2 and 6; the last two end after 300 and 150 of 600 updates."""
    for score, number in ((1, 600), (2, 300), (6, 150)):
        scored(tmp_path / f"s{score}", number, lambda s, x=score: 0 * s + x, seed=score)
    curve = curves.curve(line(tmp_path), "steps")
    assert len(curve.x) == 20 and curve.x[-1] == pytest.approx(48_000 * 39 / 40)
    # Of 20 bins of 2,400 steps each: the last episodes are at 12,000 and 24,000 steps, where a bin begins.
    assert curve.runs.tolist() == [3] * 6 + [2] * 5 + [1] * 9
    assert curve.value.tolist() == [3] * 6 + [1.5] * 5 + [1] * 9
    assert curve.low[:11].tolist() == [1] * 11 and curve.high[:11].tolist() == [6] * 6 + [2] * 5
    assert np.isnan(curve.low[11:]).all()  # a single run has no interval
    said = learning_curves.answer(load([tmp_path])[0], Curves(runs=(), axis="steps"))
    note = "pong GALA ring, steps: the line goes on where some of its 3 runs have ended: "
    assert note + "n = 2 from 15,600 on, n = 1 from 27,600 on" in said.notes
    assert {text.get_text() for text in said.figure.axes[0].texts} == {"n = 2", "n = 1"}


def test_each_seed_has_a_line_of_its_own_in_the_figure_and_the_csv(tmp_path):
    for seed in range(3):
        scored(tmp_path / f"s{seed}", 300, lambda s, x=seed: s / 1000 + x, seed=seed)
    said = learning_curves.answer(load([tmp_path])[0], Curves(runs=(), axis="steps"))
    *seeds, mean = said.figure.axes[0].lines
    assert len(seeds) == 3 and all(seed.get_linewidth() < mean.get_linewidth() / 2 for seed in seeds)
    rows = [dict(zip(said.points.headings, row)) for row in said.points.rows]
    for seed, drawn in enumerate(seeds):
        mine = [row["value"] for row in rows if row["run"] == str(tmp_path / f"s{seed}")]
        assert mine == pytest.approx(drawn.get_ydata().tolist())
        assert mine == pytest.approx([row["value"] + seed - 1 for row in rows if row["run"] is None])


def test_the_line_of_a_single_run_is_drawn_once(tmp_path):
    scored(tmp_path / "s", 300, lambda s: s)
    said = learning_curves.answer(load([tmp_path])[0], Curves(runs=(), axis="steps"))
    assert len(said.figure.axes[0].lines) == 1 and {row[-1] for row in said.points.rows} == {None}


@pytest.mark.parametrize("width", [1, 2, 3, 4, 9])
def test_smoothing_is_the_mean_of_bins_around(tmp_path, width):
    random = np.random.default_rng(0)
    for seed, number in enumerate((600, 450)):
        scored(tmp_path / f"s{seed}", number, lambda s: random.normal(size=len(s)), seed=seed)
    raw = curves.curve(line(tmp_path), "steps").each
    found = curves.curve(line(tmp_path), "steps", width).each
    assert found.shape == raw.shape == (2, 20)
    for run, values in enumerate(raw):
        known = [i for i in range(20) if np.isfinite(values[i])]
        assert len(known) == (20, 16)[run]
        for i in range(20):
            window = [values[j] for j in known if -((width - 1) // 2) <= j - i <= width // 2]
            assert found[run][i] == pytest.approx(sum(window) / len(window)) if i in known else np.isnan(found[run][i])


def test_limits_and_scales_are_those_asked_for(tmp_path):
    scored(tmp_path / "s", 300, lambda s: s)
    words = {"axis": "steps", "log": "xy", "xlim": (100.0, 20_000.0), "ylim": (10.0, 1e5)}
    [ax] = learning_curves.answer(load([tmp_path])[0], Curves(runs=(), **words)).figure.axes
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_xlim(), ax.get_ylim()) == ("log", "log", (100, 20_000), (10, 1e5))
    axes = learning_curves.answer(load([tmp_path])[0], Curves(runs=())).figure.axes
    assert [ax.get_xscale() for ax in axes] == ["linear", "linear"] and axes[0].get_xlim()[0] == 0


@pytest.mark.parametrize(
    "words, said",
    [
        (["--smooth", "0"], "--smooth 0: a number of bins from 1 to 100 is expected"),
        (["--xlim", "0", "9"], "--xlim: --axis is expected with it, which says of which axis the ends are"),
        (["--ylim", "3", "3"], "--ylim 3 3: two finite numbers are expected, the smaller one first"),
        (["--ylim", "nan", "3"], "--ylim nan 3: two finite numbers are expected, the smaller one first"),
        (
            ["--log", "y", "--ylim", "0", "3"],
            "--ylim 0 3: two finite numbers, above 0 on a logarithmic axis, are expected, the smaller one first",
        ),
        (["--log", "y"], "--log y: scores above 0 are expected, and -5 is drawn"),
        (
            ["--axis", "kilojoules"],
            "--axis kilojoules: energy was not measured in all runs, or not alike; one of steps, hours is expected",
        ),
    ],
)
def test_scales_without_sense_are_refused(tmp_path, words, said, monkeypatch, capsys):
    scored(tmp_path / "s", 300, lambda s: 0 * s - 5)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(learning_curves.answer, Curves, "", [".", *words])
    assert (ended.value.code, capsys.readouterr().err) == (2, f"learning_curves.py: {said}\n")


def test_the_sentence_compares_lines_where_the_first_one_ends(tmp_path):
    scored(tmp_path / "g", 1000, lambda s: s / 1000)
    scored(tmp_path / "a", 250, lambda s: s / 500, exchange="allreduce")
    said = learning_curves.answer(load([tmp_path])[0], Curves(runs=()))
    assert said.sentence.startswith("pong: the score of A2C is the highest of 2 at 19,000 steps, 38")


def test_lines_over_games_end_where_a_game_has_no_run_left(tmp_path):
    scored(tmp_path / "p", 10, lambda s: 0 * s, total_steps=80_000)
    scored(tmp_path / "b", 600, lambda s: s, env="breakout")
    said = learning_curves.answer(load([tmp_path])[0], Curves(runs=(), statistic="iqm", axis="steps"))
    drawn = [row for row in said.points.rows if row[-1] is None]
    assert {row[8] for row in drawn} == {2} and len(drawn) == 1  # one bin of 20 holds all of Pong
    note = "all games GALA ring, steps: the line ends at 2,400, where a game has no run left; others go on to 48,000"
    assert note in said.notes


def test_the_command_writes_all_that_is_drawn(tmp_path, monkeypatch, capsys):
    for seed in range(2):
        scored(tmp_path / f"s{seed}", 100, lambda s: s, seed=seed)
    monkeypatch.chdir(tmp_path)
    main(learning_curves.answer, Curves, "", [".", "--out", "c.svg"])
    rows = list(csv.DictReader(open("c.csv")))
    assert {(row["axis"], row["run"]) for row in rows} == {(a, r) for a in ("steps", "hours") for r in ("", "s0", "s1")}


def test_a_run_with_one_late_episode_does_not_hide_the_others(tmp_path):
    """The group's line needs all of its runs; the others are seen from their first episode on."""
    scored(tmp_path / "whole", 100, lambda s: s / 1000)
    run, rows = Synthetic(tmp_path / "late", agents=1, total_steps=8000, seed=1), updates(100)
    run.write(0, updates=rows, episodes=episodes(rows, 3.0, every=100))
    said = learning_curves.answer(load([tmp_path])[0], Curves(runs=(), axis="steps"))
    of_runs = {name: [row[3] for row in said.points.rows if row[-1] == name] for name in (str(tmp_path / "whole"), None)}
    assert len(of_runs[str(tmp_path / "whole")]) == 10 and of_runs[None] == [7600]
    assert "pong GALA ring, steps: the line begins at 7,600, where every run has ended an episode" in said.notes


def test_a_label_of_unequal_numbers_of_runs_stands_once_in_the_legend(tmp_path):
    for number, env in enumerate(("pong", "pong", "breakout")):
        scored(tmp_path / str(number), 100, lambda s: s, env=env, seed=number)
    said = learning_curves.answer(load([tmp_path])[0], Curves(runs=(), axis="steps"))
    assert [text.get_text() for text in said.figure.legends[0].get_texts()] == ["GALA ring (1–2 runs)"]


def test_a_run_whose_last_episode_ends_a_little_before_the_others_does_not_count_as_cut_short(tmp_path):
    """Of 20 bins of 30 updates each, the second run's last episode is in the last but one."""
    scored(tmp_path / "a", 600, lambda s: 0 * s)
    scored(tmp_path / "b", 560, lambda s: 0 * s + 2, seed=1)
    scored(tmp_path / "c", 530, lambda s: 0 * s + 4, seed=2)
    assert curves.curve(line(tmp_path), "steps").runs.tolist() == [3] * 18 + [2] * 2
