"""Groups keep their names and their colours whichever of them a script can show."""

from __future__ import annotations

import re

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex
from synthetic import Synthetic, episodes, mixes, scored, sketches, updates

import aggregates
import compare
import health
import learning_curves
import report
import robustness
import scores
import stats
import throughput
from groups import grouped, labels, load, mixtures
from layout import line_style
from script import STYLE, Options
from webpage import picture


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def hierarchical(nodes: list[int]) -> dict:
    return {"topology": {"name": "hierarchical:2", "text": "", "nodes": nodes}}


@pytest.fixture
def graphs(tmp_path):
    """Runs on two graphs of one name, two on each, and one on a ring; constant scores."""
    for seed, (nodes, score) in enumerate((([0, 0], 1), ([0, 0], 2), ([0, 1], 10), ([0, 1], 11))):
        scored(tmp_path / f"h{seed}", 100, lambda s, x=score: 0 * s + x, seed=seed, **hierarchical(nodes))
    scored(tmp_path / "ring", 100, lambda s: 0 * s + 5)
    return tmp_path


CALLED = ["hierarchical:2 (1)", "hierarchical:2 (2)", "ring"]


def test_graphs_of_one_name_are_two_groups_everywhere(graphs):
    found, _ = load([graphs])
    groups = grouped(found, "topology")
    assert [(group.label, len(group.runs)) for group in groups] == list(zip(CALLED, (2, 2, 1)))
    said = aggregates.answer(found, aggregates.Aggregates(runs=(), by="topology"))
    rows = [dict(zip(said.table.headings, row)) for row in said.table.rows]
    assert [(row["group"], row["runs"], row["mean"].value) for row in rows] == list(zip(CALLED, (2, 2, 1), (1.5, 10.5, 5)))
    said = compare.answer(found, compare.Compare(runs=(), by="topology", base="ring"))
    rows = [dict(zip(said.table.headings, row)) for row in said.table.rows]
    assert {row["group"]: (row["runs"], row["P(improvement)"].value) for row in rows} == dict(zip(CALLED, ((2, 0), (2, 1))))


def test_numbers_of_graphs_are_explained(graphs):
    for seed, text in ((5, "0 -> 1\n1 -> 0"), (6, "0 -> 1\n")):
        scored(graphs / f"own{seed}", 100, lambda s: s, topology={"name": "own.txt", "text": text, "nodes": []})
    found, _ = load([graphs])
    expected = [
        f"hierarchical:2 (1): agents on nodes 0 0, as in {graphs}/h0",
        f"hierarchical:2 (2): agents on nodes 0 1, as in {graphs}/h2",
        f"own.txt (1): the graph 0 -> 1, as in {graphs}/own6",
        f"own.txt (2): the graph 0 -> 1 1 -> 0, as in {graphs}/own5",
    ]
    for module in (aggregates, compare, learning_curves, robustness, throughput, health):
        notes = module.answer(found, report.CHAPTERS[module](runs=(), by="topology")).notes
        assert [note for note in notes if ", as in " in note] == expected
    assert not any("as in" in note for note in mixtures(grouped(found, "method")))


def test_a_group_is_called_the_same_where_its_namesake_is_not_there(graphs):
    found, _ = load([graphs])
    assert [group.label for group in grouped(found[2:], "topology", known=found)] == CALLED[1:]
    assert [group.label for group in grouped(found[2:], "topology")] == ["hierarchical:2", "ring"]


def test_graphs_have_one_name_in_all_games(tmp_path):
    scored(tmp_path / "a", 10, lambda s: s, **hierarchical([0, 0]))
    scored(tmp_path / "b", 10, lambda s: s, **hierarchical([0, 1]))
    scored(tmp_path / "c", 10, lambda s: s, env="breakout", **hierarchical([0, 1]))
    groups = grouped(load([tmp_path])[0], "topology")
    assert [group.name for group in groups] == [f"breakout {CALLED[1]}", f"pong {CALLED[0]}", f"pong {CALLED[1]}"]


ASKED = {
    aggregates: aggregates.Aggregates,
    compare: compare.Compare,
    learning_curves: learning_curves.Curves,
    robustness: robustness.Robustness,
    scores: Options,
    throughput: Options,
}


@pytest.mark.parametrize("module", ASKED, ids=lambda module: module.__name__)
def test_a_group_has_the_same_colour_where_others_cannot_be_shown(tmp_path, module):
    """The first of three groups has no episode, no evaluation, and too few updates for its speed."""
    for n in range(3):
        run, rows = Synthetic(tmp_path / f"r{n}", agents=2, lr=0.001 * (n + 1), total_steps=16_000), updates(100 if n else 1)
        for rank in range(2):
            run.write(rank, updates=rows, mixes=mixes(rows, 1 - rank), **({"episodes": episodes(rows, 1.0 * n)} if n else {}))
        if n:
            run.evaluate(1, {-1: [5.0 + n, 6.0 + n]})
    found, _ = load([tmp_path])
    expected = {line_style(n)["color"] for n in range(1, 3)}
    figure = module.answer(found, ASKED[module](runs=(), by="lr")).figure
    shown = {to_hex(line.get_color()) for ax in figure.axes for line in ax.lines}
    assert labels(grouped(found, "lr")) == ["lr 0.001", "lr 0.002", "lr 0.003"]
    shown -= {"#555555"}  # the line of no difference, and published scores
    assert shown and shown <= {colour.lower() for colour in expected}


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    """Ten groups, more than there are colours, that every script can show."""
    folder = tmp_path_factory.mktemp("ten")
    for n in range(10):
        run = Synthetic(folder / f"r{n}", agents=2, lr=0.001 * (n + 1), total_steps=4800)
        for rank in range(2):
            rows = updates(30)
            tables = {"mixes": mixes(rows, 1 - rank), "sketches": sketches(rows, seed=rank)}
            run.write(rank, updates=rows, episodes=episodes(rows, 1.0 + n), **tables)
        run.evaluate(1, {-1: [5.0 + n, 6.0 + n]})
    return load([folder])[0]


@pytest.mark.parametrize("module", [aggregates, compare, scores, throughput], ids=lambda module: module.__name__)
def test_every_panel_of_the_page_is_filtered(ten, module, monkeypatch):
    """Each group has parts in each panel that is about groups, and nothing coloured is of none."""
    monkeypatch.setattr(stats, "RESAMPLES", 20)
    groups = grouped(ten, "lr")
    with plt.rc_context(STYLE):
        said = module.answer(ten, report.CHAPTERS[module](runs=(), by="lr"))
        svg = picture(said.figure, "", module.__name__, groups, labels(groups))
    tagged = re.findall(rf'id="{module.__name__}-g(\d+)-', svg)
    compared = set(range(10)) - ({0} if module is compare else set())  # but for the base
    for ax in said.figure.axes[: 1 if module is not aggregates else None]:
        mine = {int(artist.get_gid()[1:].partition("-")[0]) for artist in ax.lines if (artist.get_gid() or "").startswith("g")}
        names = {text.get_gid().partition("-")[0] for text in ax.get_yticklabels() if text.get_gid()}
        assert mine == compared
        named = module is not throughput and ax is said.figure.axes[0]  # rows are named once
        assert not named or names == {f"g{n}" for n in mine}
        plain = [line for line in ax.lines if not line.get_gid()]
        assert len(plain) == 1 or module is not compare
        assert {to_hex(line.get_color()) for line in plain} <= {"#555555"}  # of no difference, and published scores
    assert {int(n) for n in tagged} == set(range(10))


def test_bars_of_sections_go_with_their_group(ten):
    """They have the sections' colours, and each group's lie in its row."""
    groups = grouped(ten, "lr")
    figure = throughput.answer(ten, Options(runs=(), by="lr")).figure
    picture(figure, "", "t", groups, labels(groups))
    ax = figure.axes[1]
    assert len(ax.containers) == 7
    for container in ax.containers:
        assert [bar.get_gid().partition("-")[0] for bar in container] == [f"g{n}" for n in range(10)]
    assert [text.get_gid().partition("-")[0] for text in ax.get_yticklabels()] == [f"g{n}" for n in range(10)]
    assert not any(handle.get_gid() for handle in ax.get_legend().legend_handles)


def test_what_is_written_beside_a_line_goes_with_it(tmp_path):
    """One of two runs ends early, which is said in the panel, in the group's colour."""
    for name, number, exchange in (("g0", 400, "gossip"), ("g1", 150, "gossip"), ("a", 400, "allreduce")):
        scored(tmp_path / name, number, lambda s: s, exchange=exchange)
    groups = grouped(load([tmp_path])[0], "method")
    figure = learning_curves.answer(load([tmp_path])[0], learning_curves.Curves(runs=())).figure
    picture(figure, "", "l", groups, labels(groups))
    [said] = figure.axes[0].texts
    assert said.get_text() == "n = 1" and said.get_gid().startswith("g1-")
