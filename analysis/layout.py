"""Figures in which every word is whole and stands as it was written, whatever groups are called and however many they are."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, less yellow
DASHES = ("-", "--", ":", "-.")  # for more groups than colours
MARKERS = "osD^vP*"
WIDEST_NAMES = 0.38  # of the figure's width, for names beside an axis
LEGEND_CHARACTERS = 80  # that stand side by side under a figure, 8 of them for each line's sample
NAMES = (FixedFormatter, FuncFormatter)  # of axes on which scripts have set what stands there
LEGEND_LINE = 0.22  # in


def panels(number: int, height: float = 3.3, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure of so many panels, one above the other, so that it can be read on a phone."""
    rows = -(-number // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(7 if columns == 1 else 4 * columns, height * rows),
        layout="constrained",
        squeeze=False,
        **options,
    )
    for spare in axes.flat[number:]:
        spare.remove()
    return figure, list(axes.flat[:number])


def line_style(number: int) -> dict[str, Any]:
    """Return colour and dash of the group with this number: no two are alike."""
    kind = number // len(COLOURS)
    dash = DASHES[kind] if kind < len(DASHES) else (0, (2 * kind, 2, 1, 2))  # ever longer
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": dash}


def marker(number: int) -> str:
    """Return the marker of the group with this number: with its colour, that of no other one of some dozens."""
    return MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """Draw one legend under all panels, for which the figure grows."""
    entries = {name: handle for ax in axes for handle, name in zip(*ax.get_legend_handles_labels())}
    if entries:
        names = [textwrap.fill(name, LEGEND_CHARACTERS - 8) for name in entries]
        columns = max(1, min(3, len(entries), LEGEND_CHARACTERS // (max(map(len, entries)) + 8)))
        figure.legend(entries.values(), names, loc="outside lower center", ncols=columns)
        lines = -(-len(names) // columns) * max(name.count("\n") + 1 for name in names)
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, lines - 3))


def save(figure: Figure, file: Any, **options: Any) -> None:
    """Write a figure, as `Figure.savefig` does, after breaking lines that are longer than there is room."""
    write_as_it_stands(figure)
    break_legends(figure)
    broken, words = break_names(figure), {text: text.get_text() for text, _ in rooms(figure)}

    def break_all() -> None:
        for text, room in [*rooms(figure)]:
            text.set_text(words[text])
            break_lines(text, room)

    break_all()  # roughly, so that the panels have room
    figure.draw_without_rendering()  # which moves them
    if broken:
        grow(figure, broken)
        figure.draw_without_rendering()
    break_all()
    figure.savefig(file, **options)


def write_as_it_stands(figure: Figure) -> None:
    """Let a dollar in a name be one, and no mathematics. Only numbers on axes are set as such."""
    numbers = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        if not isinstance(axis.get_major_formatter(), NAMES):
            numbers.update([*axis.get_ticklabels(which="both"), axis.get_offset_text()])
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_parse_math(False)


def break_legends(figure: Figure) -> None:
    """Break names in legends under a figure that is narrower than they were made for, and let it grow by the new lines."""
    for legend in figure.legends:
        texts = legend.get_texts()
        samples = 5 * texts[0].get_fontsize() * figure.dpi / 72  # the line before each name, and gaps
        room, lines = figure.bbox.width / legend._ncols - samples, [text.get_text().count("\n") for text in texts]
        for text in texts:
            text.set_text(text.get_text().replace("\n", " "))
            break_lines(text, room)
        more = sum(text.get_text().count("\n") - before for text, before in zip(texts, lines))
        figure.set_figheight(figure.get_figheight() + LEGEND_LINE * max(0, more) / legend._ncols)


def break_names(figure: Figure) -> list[Axes]:
    """Break names beside an axis that would take up more than WIDEST_NAMES of the figure; return the axes that have such."""
    room, broken = WIDEST_NAMES * figure.bbox.width, []
    for ax in figure.axes:
        labels = ax.get_yticklabels() if isinstance(ax.yaxis.get_major_formatter(), NAMES) else []
        if any(label.get_window_extent().width > room for label in labels):
            for label in labels:
                break_lines(label, room)
            ax.set_yticks(ax.get_yticks(), [label.get_text() for label in labels], fontsize=labels[0].get_fontsize())
        if any("\n" in label.get_text() for label in labels):
            broken.append(ax)
    return broken


def grow(figure: Figure, axes: list[Axes]) -> None:
    """Make the figure higher if names beside these axes overlap."""
    highest = [max(label.get_window_extent().height for label in ax.get_yticklabels()) for ax in axes]
    heights = [ax.get_window_extent().height / len(ax.get_yticks()) for ax in axes]
    growth = max(1.15 * high / room for high, room in zip(highest, heights))
    figure.set_figheight(max(1.0, growth) * figure.get_figheight())


def rooms(figure: Figure) -> Iterator[tuple[Text, float]]:
    """Yield titles and names of axes, and how long each may be, in pixels along its line."""
    width, height = figure.bbox.size
    if figure.get_suptitle():
        yield figure._suptitle, width
    for ax in figure.axes:
        box, place = ax.get_window_extent(), ax.get_subplotspec()
        columns = place.get_gridspec().ncols if place else 1
        for title in (ax.title, ax._left_title, ax._right_title):
            yield title, width - box.x0 if columns == 1 else min(0.95 * width / columns, width - box.x0)
        middle = (box.x0 + box.x1) / 2
        yield ax.xaxis.label, 2 * min(middle, width - middle) if columns == 1 else width / columns
        yield ax.yaxis.label, max(box.height, 0.2 * height)


def break_lines(text: Text, room: float) -> None:
    """Break a text into lines that are no longer than `room`."""
    words = text.get_text()
    if not words:
        return
    box = text.get_window_extent()
    length = box.height if text.get_rotation() == 90 else box.width
    if length > room:
        characters = max(8, int(0.97 * room / length * max(map(len, words.splitlines()))))
        lines = [line for old in words.splitlines() for line in textwrap.wrap(old, characters) or [""]]
        text.set_text("\n".join(lines))
