"""What is written in figures is whole and as it stands: long names, dollars, many groups, two games."""

from __future__ import annotations

import io
import itertools
import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text
from synthetic import Synthetic, episodes, mixes, sketches, updates

import aggregates
import compare
import consensus
import gradients
import layout
import learning_curves
import robustness
import scores
import staleness
import throughput
import webpage
from groups import load
from script import STYLE, Options

ANSWERS = {
    "learning_curves": lambda found: learning_curves.answer(found, learning_curves.Curves(runs=())),
    "aggregates": lambda found: aggregates.answer(found, aggregates.Aggregates(runs=())),
    "compare": lambda found: compare.answer(found, compare.Compare(runs=(), all_pairs=True)),
    "robustness": lambda found: robustness.answer(found, robustness.Robustness(runs=())),
    "scores": lambda found: scores.answer(found, Options(runs=())),
    "throughput": lambda found: throughput.answer(found, Options(runs=())),
    "staleness": lambda found: staleness.answer(found, Options(runs=())),
    "consensus": lambda found: consensus.answer(found, Options(runs=())),
    "gradients": lambda found: gradients.answer(found, Options(runs=())),
}
NAME = "a graph that somebody keeps $x_{%d}$ in a folder with a name that goes on and on, and then some more.txt"


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Runs of graphs with long names and dollars: two in one game and one of these in another."""
    folder = tmp_path_factory.mktemp("named")
    for number, env in ((0, "pong"), (1, "pong"), (0, "breakout")):
        graph = {"name": NAME % number, "text": "0 1\n1 0\n", "nodes": []}
        run = Synthetic(folder / f"$_{env}{number}", topology=graph, env=env, total_steps=9600)
        for rank in range(2):
            rows = updates(60)
            tables = {"mixes": mixes(rows, 1 - rank), "sketches": sketches(rows, seed=rank)}
            run.write(rank, updates=rows, episodes=episodes(rows, rows["steps"] / 1000.0), **tables)
        run.evaluate(3, {-1: [1, 2], 0: [1, 2], 1: [2, 3]})
    return load([folder])[0]


def drawn(figure) -> list[Text]:
    """The texts that are seen."""
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("script", ANSWERS)
def test_no_name_is_cut_off_and_a_dollar_is_one(named, script):
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's where panels have no room
        figure = ANSWERS[script](named).figure
        layout.save(figure, io.BytesIO(), dpi=50)
        figure.draw_without_rendering()  # measured as it was planned
        width, height = figure.bbox.size
        words = [text for text in drawn(figure) if any(mark in text.get_text() for mark in ("$x", "_{", "run", "(", "step"))]
        assert words
        for text in words:
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1, text
        assert any("$x_{0}$" in text.get_text().replace("\n", " ") for text in words)
        assert not any(text.get_parse_math() and "$x" in text.get_text() for text in drawn(figure))
        for ax in figure.axes:
            boxes = [label.get_window_extent() for label in ax.get_yticklabels() if label.get_text()]
            boxes.sort(key=lambda box: box.y0)
            assert all(low.y1 <= high.y0 + 1 for low, high in itertools.pairwise(boxes))
    plt.close("all")


def test_no_two_of_a_hundred_groups_are_drawn_alike():
    styles = [(style["color"], str(style["linestyle"])) for style in map(layout.line_style, range(100))]
    assert len(set(styles)) == 100
    assert len({(layout.line_style(n)["color"], layout.marker(n)) for n in range(49)}) == 49
    _, [ax] = layout.panels(1)
    for number in range(100):
        ax.plot([0, 1], [0, 1], **layout.line_style(number))  # matplotlib takes all of them
    plt.close("all")


@pytest.mark.filterwarnings("error")
def test_a_figure_grows_with_its_legend():
    heights = []
    for groups in (3, 40):
        figure, [ax] = layout.panels(1)
        for number in range(groups):
            ax.plot([0, 1], label=f"group {number}", **layout.line_style(number))
        layout.legend(figure, [ax])
        layout.save(figure, io.BytesIO())
        heights.append(ax.get_window_extent().height)
    assert heights[1] > 0.8 * heights[0]
    plt.close("all")


def test_names_in_a_legend_are_whole_in_a_narrower_figure():
    """As on the report's page."""
    figure, [ax] = layout.panels(1)
    for number in range(3):
        ax.plot([0, 1], label=NAME % number)
    layout.legend(figure, [ax])
    figure.set_figwidth(4.5)
    layout.save(figure, io.BytesIO())
    assert [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()] == [NAME % n for n in range(3)]
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and ax.get_window_extent().height > 1.5 * figure.dpi
    plt.close("all")


def test_two_short_names_in_a_legend_share_the_width():
    figure, [ax] = layout.panels(1)
    for name in ("A2C (3 runs)", "GALA ring (3 runs)"):
        ax.plot([0, 1], label=name)
    layout.legend(figure, [ax])
    figure.set_figwidth(5.4)
    layout.save(figure, io.BytesIO())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A2C (3 runs)", "GALA ring (3 runs)"]
    plt.close("all")


@pytest.mark.parametrize("width", [7, webpage.WIDTH])
def test_the_legend_of_sections_is_whole_beside_long_names(named, width):
    figure = ANSWERS["throughput"](named).figure
    figure.set_figwidth(width)
    if width < 7:
        webpage.fit_legends(figure)
    layout.save(figure, io.BytesIO())
    box, ax = figure.axes[1].get_legend().get_window_extent(), figure.axes[1].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and ax.width > 0.4 * figure.bbox.width
    plt.close("all")


def test_numbers_on_logarithmic_axes_are_still_set(tmp_path):
    figure, [ax] = layout.panels(1)
    ax.plot([1, 10, 100], [1, 1000, 100_000])
    ax.set(xscale="log", yscale="log", title="$5")
    layout.save(figure, tmp_path / "f.png")
    labels = [label for label in ax.get_yticklabels() if "mathdefault" in label.get_text()]
    assert labels and all(label.get_parse_math() for label in labels)
    plt.close("all")


def test_groups_on_one_number_of_environments_stand_side_by_side_around_it(tmp_path):
    for number in range(30):
        run, rows = Synthetic(tmp_path / str(number), agents=1, lr=0.001 * (number + 1)), updates(30)
        run.write(0, updates=rows, episodes=episodes(rows))
    said = robustness.answer(load([tmp_path])[0], robustness.Robustness(runs=(), by="lr"))
    [ax] = said.figure.axes
    places = sorted(
        float(line.get_xdata()[0]) for line in ax.lines if line.get_label().startswith("lr") or len(line.get_xdata()) == 1
    )
    assert 16 / 1.5 < places[0] < 16 < places[-1] < 16 * 1.5
    assert math.sqrt(places[0] * places[-1]) == pytest.approx(16)
    assert not ax.texts  # counts would lie over each other
    plt.close("all")


def test_gradients_that_are_next_to_unlike_do_not_look_alike(named):
    with plt.rc_context(STYLE):
        figure = ANSWERS["gradients"](named).figure
    image = figure.axes[0].images[0]
    assert np.nanmax(np.abs(image.get_array())) < 0.1 and image.get_clim() == (-0.2, 0.2)
    plt.close("all")
