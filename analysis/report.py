"""One page with every figure and table that the runs can support.

    python analysis/report.py runs/pong-gossip-... runs/pong-allreduce-... --out report.html

Asks every script of this folder and puts what each says on one page: answers in a sentence, figures, tables, definitions, and
what could not be shown and why. Groups can be hidden. The page is one file: pictures lie inside it, it loads nothing, and has
no script. A chapter that fails is named, and the others are there.
"""

from __future__ import annotations

import html
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
from groups import Group, grouped, incomplete, labels, load
from script import STYLE, Answer, Options, Table, check_folder, print_codes, progress, reader_may_leave, whole
from tables import ENCODING
from webpage import boxes, picture, tabled, whole_page

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
    groups = grouped(found, wanted.by)
    chapters, sentences, absent, failed = [], [], [], []
    with plt.rc_context(STYLE):
        for module, options in progress(list(CHAPTERS.items()), "report"):
            try:
                said = module.answer(found, options(runs=wanted.runs, by=wanted.by))
                chapters.append(chapter(module, said, groups))
                sentences.append((module, said.sentence))
            except RunError as error:
                absent.append(f"{question(module)} {error}")
            except Exception as error:  # of one chapter, which must not cost the others
                failed.append(f"{name(module)}.py: {type(error).__name__}: {error}")
                print(f"report.py: {failed[-1]}; its chapter is left out", file=sys.stderr)
            finally:
                plt.close("all")
    games = ", ".join(sorted({run.config["env"] for run in found}))
    parts = [summary(sentences), listed("Failed", failed), listed("Notes", [*problems, *incomplete(found)])]
    parts += [boxes(labels(groups)), overview(groups), *chapters, listed("What these runs cannot show", absent)]
    parts.append(f"<p>Written {time.strftime('%Y-%m-%d %H:%M %Z')}.</p>")
    return whole_page(f"{games}: {len(found)} run{'s' * (len(found) > 1)}", parts, labels(groups))


def name(module: ModuleType) -> str:
    return module.__name__


def question(module: ModuleType) -> str:
    return module.__doc__.splitlines()[0]


def summary(sentences: list[tuple[ModuleType, str]]) -> str:
    """Return each question with its answer; the question leads to its chapter."""
    lines = (
        f'<dt><a href="#{name(module)}">{html.escape(question(module))}</a></dt><dd>{html.escape(sentence)}</dd>'
        for module, sentence in sentences
    )
    return f'<section class="summary" id="summary"><h2>In short</h2><dl>{"".join(lines)}</dl></section>'


def chapter(module: ModuleType, said: Answer, groups: list[Group]) -> str:
    """Return one script's answer, figure, table, notes and definitions."""
    definitions = module.__doc__.partition("\n\n")[2].partition("\n\n")[2]  # without the question and the commands
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in said.notes)
    shown = picture(said.figure, said.alt, name(module), groups, labels(groups)) if said.figure else ""
    return (
        f'<section id="{name(module)}">\n<h2>{html.escape(question(module))}</h2>\n'
        f'<p class="answer">{html.escape(said.sentence)}</p>\n{shown}\n{tabled(said.table, groups, labels(groups))}\n'
        + (f'<ul class="notes">{notes}</ul>\n' if notes else "")
        + f"<details><summary>Definitions</summary><pre>{html.escape(definitions)}</pre></details>\n</section>"
    )


def overview(groups: list[Group]) -> str:
    """Return a table of what was run, a row a run."""
    headings = ("run", "group", "env", "agents", "environments", "steps", "hours", "state", "started", "hosts", "commit")
    table = Table(headings)
    for group in groups:
        for run in group.runs:
            s, first = run.settings(), run.starts[0]
            hosts = ", ".join(dict.fromkeys(first.get("hosts", [])))
            metadata = (first.get("time", ""), hosts, first.get("commit", "")[:10])
            sizes = (s["env"], run.agents, s["environments"], run.steps, run.hours)
            table.rows.append((str(run.path), group.label, *sizes, run.state, *metadata))
    found = [run for group in groups for run in group.runs]
    commands = "".join(f"<li>{html.escape(run.starts[0].get('command', ''))}</li>" for run in found)
    versions = sorted({line for run in found for line in [run.starts[0].get("mpi", ""), *run.starts[0].get("packages", [])]})
    more = f"<ul>{commands}</ul><p>{html.escape('; '.join(versions))}</p>"
    shown = tabled(table, groups, labels(groups))
    more = f"<details><summary>Commands and versions</summary>{more}</details>"
    return f'<section id="runs"><h2>What was run</h2>{shown}{more}</section>'


def listed(heading: str, lines: list[str]) -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<h2>{heading}</h2>\n<ul class="notes">{items}</ul>' if lines else ""


def main(arguments: list[str] | None = None) -> None:
    print_codes()
    wanted = tyro.cli(Report, prog="report.py", description=__doc__, args=arguments)
    try:
        if wanted.out.suffix != ".html":
            raise RunError(f"--out {wanted.out}: a file name that ends in .html is expected")
        check_folder(wanted.out)
        found, problems = load(wanted.runs, wanted.where)
        text = page(found, problems, wanted)
        with whole(wanted.out) as temporary:
            temporary.write_text(text, **ENCODING)
    except (RunError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    with reader_may_leave():
        print(wanted.out)


if __name__ == "__main__":
    main()
