"""The parts of one HTML page that loads nothing and runs no script: tables, figures as SVG, a filter by group in CSS.

Whatever belongs to group n, a row of a table or a part of a figure, bears its number, and is hidden while the group's box is
not checked (`:has()`, in browsers since 2023; older ones show everything).
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Iterator

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer, Container
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

import checkout  # noqa: F401
from groups import Group
from layout import LEGEND_LINE, save
from tables import Table

WIDTH = 5.4  # in, of a figure of one column of panels: its words can be read at 390 pixels
PIXELS = 96  # an inch, in CSS
READABLE = 0.68  # of its natural size, at least; narrower screens scroll it
SHORT = 22  # characters that are not broken
NARROW, WIDE = 42, 100  # characters that stand side by side on a phone, and on a screen
OF_GROUPS = ("group", "method", "base")  # headings of columns that name groups

CSS = """:root { --page: #ffffff; --text: #1a1a1a; --faint: #666666; --line: #dddddd }
:root { --link: #00558a; --note: #7a3b00; --card: #f4f6f8 }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181b; --text: #e6e6e6; --faint: #a0a0a0; --line: #3a3e44 }
  :root { --link: #7cc0ee; --note: #f0b27a; --card: #212429 }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem }
body { color: var(--text); background: var(--page) }
a { color: var(--link) }
h1 { font-size: 1.5rem; line-height: 1.2 }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; line-height: 1.25 }
.answer { font-size: 1.1rem; margin: .25rem 0 .75rem; overflow-wrap: anywhere }
.summary { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; margin: 1rem 0 }
.summary h2 { margin: 0 0 .25rem }
.summary dt { margin-top: .5rem; font-size: .85rem }
.summary dd { margin: 0; overflow-wrap: anywhere }
.filter { position: sticky; top: 0; z-index: 2; padding: .4rem 0; font-size: .85rem; max-height: 30vh; overflow-y: auto }
.filter { background: var(--page); border-bottom: 1px solid var(--line) }
.filter label { display: inline-block; margin-right: 1rem }
figure { margin: .5rem 0; overflow-x: auto }
figure svg { display: block; width: 100%; height: auto; margin: 0 auto; background: #ffffff; border-radius: .25rem }
.wide { overflow-x: auto; margin: .5rem 0 }
.hint { display: none; font-size: .8rem; color: var(--faint); margin: .5rem 0 0 }
.hint.always { display: block }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th, td { max-width: 16rem; overflow-wrap: break-word }
th { border-bottom: 2px solid var(--faint) }
td.number, th.number { text-align: right; white-space: nowrap }
td.short { white-space: nowrap }
td.long { min-width: 9rem }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--page); min-width: 5rem }
.notes { font-size: .85rem; color: var(--note); padding-left: 1.2rem; overflow-wrap: anywhere }
details { font-size: .85rem; margin: .5rem 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: inherit }
@media (max-width: 40rem) {
  .hint { display: block }
  th:first-child, td:first-child { min-width: 5rem; max-width: 9rem; overflow-wrap: anywhere; white-space: normal }
}
@media print {
  :root { --page: #ffffff; --text: #000000; --faint: #555555; --line: #cccccc; --link: #000000; --note: #333333 }
  body { max-width: none; padding: 0; font-size: 10pt }
  .filter, .hint { display: none !important }
  .wide, figure { overflow: visible }
  figure svg { min-width: 0 !important }
  table { font-size: 6.5pt }
  th, td { padding: .1rem .2rem; overflow-wrap: anywhere; position: static !important; white-space: normal !important }
  figure, tr { break-inside: avoid }
  h2 { break-after: avoid }
}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{css}{hidden}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def whole_page(title: str, parts: Iterable[str], labels: list[str]) -> str:
    """Return the page; `labels`: of all groups, in the order of their numbers."""
    rules = (f'body:has(#group-{n}:not(:checked)) :is(.g{n}, [id*="-g{n}-"]) {{ display: none }}' for n in range(len(labels)))
    return PAGE.format(title=html.escape(title), css=CSS, hidden="\n".join(rules), body="\n".join(parts))


def boxes(labels: list[str]) -> str:
    """Return a box for every group, which shows or hides it; nothing for a single group."""
    if len(labels) < 2:
        return ""
    each = (
        f'<label><input type="checkbox" id="group-{n}" checked> {html.escape(label)}</label>' for n, label in enumerate(labels)
    )
    return f'<form class="filter" autocomplete="off">Show: {"".join(each)}</form>'


# Tables.


def tabled(table: Table, groups: list[Group], labels: list[str]) -> str:
    """Return a table that scrolls sideways where it is too wide, with a word about that."""
    numbers = {name: labels.index(group.label) for group in groups for name in (group.name, group.label)}
    places = [n for n, heading in enumerate(table.headings) if heading in OF_GROUPS]
    kinds = [' class="number"' if table.numeric(n) else "" for n in range(len(table.headings))]
    head = "".join(f"<th{kind}>{html.escape(heading)}</th>" for kind, heading in zip(kinds, table.headings))
    body, cells = "", table.cells()
    for row in cells:
        mine = sorted({numbers[row[n]] for n in places if row[n] in numbers})
        classes = f' class="{" ".join(f"g{n}" for n in mine)}"' if mine else ""
        columns = "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(map(whole_words, kinds, row), row))
        body += f"<tr{classes}>{columns}</tr>"
    width = sum(min(24, max(map(len, column))) + 2 for column in zip(table.headings, *cells))
    hint = f'<p class="hint{" always" * (width > WIDE)}">More columns: scroll sideways →</p>' if width > NARROW else ""
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'{hint}<div class="wide" tabindex="0" role="region" aria-label="table">{inner}</div>'


def whole_words(kind: str, cell: str) -> str:
    """Return the class of a cell: a number's, or that of few words, which stay on a line, or of more."""
    return kind or (' class="short"' if len(cell) <= SHORT else ' class="long"')


# Figures.


def picture(figure: Figure, alt: str, name: str, groups: list[Group], labels: list[str]) -> str:
    """Return a figure as SVG, in which the parts that belong to a group can be told; `name`: of its own on the page."""
    if not any(columns(ax) > 1 for ax in figure.axes):
        figure.set_figwidth(WIDTH)
        fit_legends(figure)
    number = 0
    for number, (group, artist) in enumerate(of_groups(figure, groups, labels)):
        artist.set_gid(f"g{group}-{number}")
    file = io.StringIO()
    save(figure, file, format="svg", metadata={"Date": None})
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", file.getvalue().partition("<svg ")[2], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    natural = figure.get_figwidth() * PIXELS
    style = f"min-width: {READABLE * natural:.0f}px; max-width: {1.1 * natural:.0f}px"
    hint = '<p class="hint">Wider than the screen: scroll sideways →</p>' if READABLE * natural > 360 else ""
    return f'{hint}<figure><svg role="img" aria-label="{html.escape(alt, quote=True)}" style="{style}" {svg}</figure>'


def columns(ax: Axes) -> int:
    """Return how many panels stand side by side where this one does."""
    place = ax.get_subplotspec()
    return place.get_gridspec().ncols if place else 1


def fit_legends(figure: Figure) -> None:
    """Draw legends anew, with no more columns than there is room for."""
    places: list[tuple[Figure | Axes, Legend | None]] = [(figure, legend) for legend in figure.legends]
    for place, legend in [*places, *((ax, ax.get_legend()) for ax in figure.axes)]:
        if legend is None:
            continue
        room = (0.95 if place is figure else 0.62) * figure.bbox.width  # beside a panel's own stand its names
        wide = legend.get_window_extent().width / room
        if wide > 1:
            texts, before = legend.get_texts(), legend._ncols
            after = max(1, int(min(before, len(texts)) / wide))
            options = {"loc": "outside lower center"}
            if isinstance(place, Axes):
                anchor = legend.get_bbox_to_anchor().transformed(place.transAxes.inverted())
                options = {"loc": legend._loc, "bbox_to_anchor": anchor.bounds}
            legend.remove()
            names, size = [text.get_text() for text in texts], texts[0].get_fontsize()
            place.legend(legend.legend_handles, names, ncols=after, fontsize=size, **options)
            figure.set_figheight(figure.get_figheight() + LEGEND_LINE * (-(-len(texts) // after) - -(-len(texts) // before)))


def of_groups(figure: Figure, groups: list[Group], labels: list[str]) -> Iterator[tuple[int, Artist]]:
    """Yield what belongs to one group, and its number: a panel that is named after it, bars in a row of its name, or what is
    labelled with its name, and what has the colour and dash of that in the same panel."""
    panels = {group.name: labels.index(group.label) for group in groups}
    names = panels | {label: number for number, label in enumerate(labels)}
    for ax in figure.axes:
        title = next((text for text in (ax.get_title("left"), ax.get_title()) if text), "")
        for name, number in panels.items():
            if title == name or title.startswith(f"{name}, "):
                yield number, ax
        styles, labelled = {}, {}
        for handle, name in zip(*ax.get_legend_handles_labels()):
            if (number := numbered(name, names)) is not None:
                parts = handle.get_children() if isinstance(handle, Container) else [handle]
                labelled |= dict.fromkeys(parts, number)
                if look := style(handle):
                    styles[look] = number
        bars = dict(in_rows(ax, names))
        for artist in (*ax.lines, *ax.collections, *ax.patches, *ax.texts):
            number = bars.get(artist, labelled.get(artist, alike(style(artist), styles)))
            if number is not None:
                yield number, artist
        for text in ax.get_yticklabels():
            if (number := numbered(text.get_text(), names)) in (*labelled.values(), *bars.values()):
                yield number, text
    for legend in figure.legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts()):
            if (number := numbered(text.get_text(), names)) is not None:
                yield number, text
                if handle is not None:
                    yield number, handle


def in_rows(ax: Axes, names: dict[str, int]) -> Iterator[tuple[Artist, int]]:
    """Yield the bars that lie in a row with a group's name, and the group's number: their colours may say something else."""
    rows = {round(y): numbered(text.get_text(), names) for y, text in zip(ax.get_yticks(), ax.get_yticklabels())}
    for container in ax.containers:
        if isinstance(container, BarContainer) and container.orientation == "horizontal":
            for bar in container:
                if (number := rows.get(round(bar.get_y() + bar.get_height() / 2))) is not None:
                    yield bar, number


def numbered(words: str, names: dict[str, int]) -> int | None:
    """Return the number of the group that an entry of a legend is of, or the name of a row; None: of no one group."""
    words = " ".join(words.split())
    if words in names:
        return names[words]
    fits = {number for name, number in names.items() if re.match(re.escape(name) + r"( \(|[:,] | over )", words)}
    return fits.pop() if len(fits) == 1 else None


def alike(look: tuple[str, str] | None, styles: dict[tuple[str, str], int]) -> int | None:
    """Return the number of the group that something looks like: of its colour and dash, or of its colour where one of both has
    no dash; None: of no one group."""
    if look is None or look in styles:
        return styles.get(look)
    fits = {number for (colour, dash), number in styles.items() if colour == look[0] and "" in (dash, look[1])}
    return fits.pop() if len(fits) == 1 else None


def style(artist: Artist) -> tuple[str, str] | None:
    """Return colour and dash of something drawn, "" where it has no dash; None: of several colours, or none."""
    if isinstance(artist, tuple):  # bars, or a line with its error bars
        parts = [part for part in artist if isinstance(part, Artist)]
        return style(parts[0]) if parts else None
    if isinstance(artist, Text):
        return to_hex(artist.get_color()), ""
    if hasattr(artist, "get_linestyle") and hasattr(artist, "get_xdata"):
        return to_hex(artist.get_color()), str(artist.get_linestyle()).strip() if artist.get_linestyle() != "None" else ""
    for name in ("get_facecolor", "get_edgecolor"):
        colour = getattr(artist, name, lambda: ())()
        if len(colour) == 4 and not hasattr(colour[0], "__len__"):
            return to_hex(colour), ""
        if len(colour) == 1:
            return to_hex(colour[0]), ""
    return None
