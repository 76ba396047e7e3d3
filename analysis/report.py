"""One page with every figure and table that the runs can support.

    python analysis/report.py runs/pong-gossip-... runs/pong-allreduce-... --out report.html

Asks every script of this folder and puts what each says on one page: figures, tables, definitions, and what could not be
shown and why. The page is one file: pictures lie inside it, it loads nothing, and has no script.
"""

from __future__ import annotations

import base64
import html
import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import tyro

import aggregates
import checkout  # noqa: F401
import compare
import consensus
import gradients
import health
import influence
import learning_curves
import robustness
import scores
import staleness
import throughput
from gala_mpi.run import Run, RunError
from groups import grouped, incomplete, load
from script import STYLE, Answer, Options, Table, check_folder, reader_may_leave, save, whole

CHAPTERS: dict[ModuleType, type[Options]] = {
    learning_curves: learning_curves.Curves,
    scores: Options,
    aggregates: aggregates.Aggregates,
    compare: compare.Compare,
    robustness: robustness.Robustness,
    throughput: Options,
    staleness: Options,
    consensus: Options,
    influence: Options,
    gradients: Options,
    health: Options,
}

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 0 auto; padding: 1rem; color: #1a1a1a }}
h1 {{ font-size: 1.5rem; line-height: 1.2 }}
h2 {{ font-size: 1.2rem; margin: 2.5rem 0 .5rem; line-height: 1.25 }}
img {{ display: block; width: 100%; max-width: 44rem; height: auto; margin: .5rem auto }}
.wide {{ overflow-x: auto; margin: .5rem 0 }}
table {{ border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: .2rem .5rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }}
th, td {{ max-width: 16rem; overflow-wrap: break-word }}
th {{ border-bottom: 2px solid #888 }}
td.number, th.number {{ text-align: right; white-space: nowrap }}
.notes {{ font-size: .85rem; color: #7a3b00; padding-left: 1.2rem; overflow-wrap: anywhere }}
details {{ font-size: .85rem; margin: .5rem 0 }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; font: inherit }}
nav a {{ color: #00558a; display: inline-block; margin-right: 1rem }}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 10pt }}
  nav {{ display: none }}
  .wide {{ overflow: visible }}
  table {{ font-size: 6.5pt }}
  th, td {{ padding: .1rem .2rem; overflow-wrap: anywhere }}
  img, tr {{ break-inside: avoid }}
  h2 {{ break-after: avoid }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class Report:
    """One page with every figure and table that the runs can support."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or folders that hold runs at any depth."""
    by: str = "method"
    """Runs of one env that agree in these settings are a group, as for the other scripts."""
    where: str = ""
    """Only runs whose settings are so, as for the other scripts: env=pong,seed<3."""
    out: Path = Path("report.html")
    """The page."""


def page(found: list[Run], problems: list[str], wanted: Report) -> str:
    """Return the page, and what the runs say, as HTML."""
    chapters, absent = [], []
    with plt.rc_context(STYLE):
        for module, options in CHAPTERS.items():
            try:
                said = module.answer(found, options(runs=wanted.runs, by=wanted.by))
            except RunError as error:
                absent.append(f"{question(module)} {error}")
                continue
            chapters.append((module, chapter(module, said)))
            plt.close(said.figure)
    games = ", ".join(sorted({run.config["env"] for run in found}))
    links = "".join(f'<a href="#{name(module)}">{html.escape(question(module))}</a> ' for module, _ in chapters)
    parts = [f"<nav>{links}</nav>", overview(found), *(text for _, text in chapters)]
    parts += [listed("What these runs cannot show", absent), listed("Notes", [*problems, *incomplete(found)])]
    parts.append(f"<p>Written {time.strftime('%Y-%m-%d %H:%M %Z')}.</p>")
    title = html.escape(f"{games}: {len(found)} run{'s' * (len(found) > 1)}")
    return PAGE.format(title=title, body="\n".join(parts))


def name(module: ModuleType) -> str:
    return module.__name__


def question(module: ModuleType) -> str:
    return module.__doc__.splitlines()[0]


def chapter(module: ModuleType, said: Answer) -> str:
    """Return one script's figure, table, notes and definitions."""
    definitions = module.__doc__.partition("\n\n")[2].partition("\n\n")[2]  # without the question and the commands
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in said.notes)
    return (
        f'<section id="{name(module)}">\n<h2>{html.escape(question(module))}</h2>\n{picture(said)}\n{tabled(said.table)}\n'
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        + f"<details><summary>Definitions</summary><pre>{html.escape(definitions)}</pre></details>\n</section>"
    )


def picture(said: Answer) -> str:
    file = io.BytesIO()
    save(said.figure, file, format="svg", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(said.alt, quote=True)}" src="data:image/svg+xml;base64,{data}">'


def tabled(table: Table) -> str:
    kinds = [' class="number"' if table.numeric(n) else "" for n in range(len(table.headings))]
    head = "".join(f"<th{kind}>{html.escape(heading)}</th>" for kind, heading in zip(kinds, table.headings))
    rows = ("".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, cells)) for cells in table.cells())
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def overview(found: list[Run]) -> str:
    """Return a table of what was run, a row a run."""
    table = Table(("run", "env", "method", "agents", "environments", "steps", "hours", "state", "started", "hosts", "commit"))
    for run in found:
        s, first = run.settings(), run.starts[0]
        hosts = ", ".join(dict.fromkeys(first.get("hosts", [])))
        metadata = (first.get("time", ""), hosts, first.get("commit", "")[:10])
        table.rows.append(
            (str(run.path), s["env"], s["method"], run.agents, s["environments"], run.steps, run.hours, run.state, *metadata)
        )
    commands = "".join(f"<li>{html.escape(run.starts[0].get('command', ''))}</li>" for run in found)
    versions = sorted({line for run in found for line in [run.starts[0].get("mpi", ""), *run.starts[0].get("packages", [])]})
    more = f"<ul>{commands}</ul><p>{html.escape('; '.join(versions))}</p>"
    return f"{tabled(table)}<details><summary>Commands and versions</summary>{more}</details>"


def listed(heading: str, lines: list[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<h2>{heading}</h2>\n<ul class="notes">{items}</ul>' if lines else ""


def main(arguments: list[str] | None = None) -> None:
    wanted = tyro.cli(Report, prog="report.py", description=__doc__, args=arguments)
    try:
        if wanted.out.suffix != ".html":
            raise RunError(f"--out {wanted.out}: a file name that ends in .html is expected")
        check_folder(wanted.out)
        found, problems = load(wanted.runs, wanted.where)
        grouped(found, wanted.by)  # refuses what is no setting; each script groups for itself
        text = page(found, problems, wanted)
        with whole(wanted.out) as temporary:
            temporary.write_text(text)
    except (RunError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    with reader_may_leave():
        print(wanted.out)


if __name__ == "__main__":
    main()
