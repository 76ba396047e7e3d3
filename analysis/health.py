"""Is training sound: losses, entropy, gradients, steps, skipped updates and memory?

    python analysis/health.py runs/pong-gossip-...
    python analysis/health.py runs --by exchange --out health.pdf

Draws these of every agent over its updates, and says which runs went wrong. Every script says so, too.

Definitions, from the table `updates` (docs/metrics.md):

* line: of one agent of one run. The updates are cut into 100 equal bins (fewer if there are fewer updates); a point is the mean
  of the finite numbers in a bin, at the bin's last update.
* policy loss, value loss, entropy (nats): means over an agent's batch, without their coefficients. An entropy may be negative
  where actions are continuous.
* gradient: its length before clipping. step: the length of the optimiser's step, learning rate included.
* kl (nats), clipped share, rho: how far the policy is from the one that played, for learners that record it; without a panel
  where no run does.
* skipped: updates from which nothing was learnt, because a number in them was not finite; since the beginning.
* memory: resident memory of the agent's process, MiB.
* alarm: what went wrong, by the thresholds below.

"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullFormatter

import alarms
import checkout  # noqa: F401
from gala_mpi.run import Run, RunError
from gala_mpi.run.parts import counted
from groups import Group, grouped, labels, mixtures
from script import Answer, Options, Table, legend, line_style, main, panels

__doc__ += (alarms.__doc__ or "").partition("\n\n")[2]

BINS = 100
PANELS = {
    "policy_loss": "policy loss",
    "value_loss": "value loss",
    "entropy": "entropy (nats)",
    "grad_norm": "gradient (norm)",
    "step_norm": "step (norm)",
    "kl": "KL divergence (nats)",
    "clip_share": "clipped share",
    "rho": "importance ratio ρ",
    "skipped": "skipped updates",
    "rss": "memory (MiB)",
}
OF_SOME = {"kl", "clip_share", "rho"}  # learners
LOGARITHMIC = {"value_loss", "grad_norm", "step_norm"}
FROM_ZERO = {"skipped", "rss"}


def answer(found: list[Run], options: Options) -> Answer:
    some = [run for run in found if any(len(run.updates(rank)) for rank in range(len(run.parts)))]
    if not some:
        raise RunError(f"{found[0].path}: no update is there yet; one or more is expected")
    groups = grouped(some, options.by, known=found)
    lines = {(id(run), rank): binned(run.updates(rank)) for run in some for rank in range(len(run.parts))}
    games = sorted({group.env for group in groups})
    shown = [name for name in PANELS if name not in OF_SOME or any(np.isfinite(line[name]).any() for line in lines.values())]
    figure, axes = panels(len(shown) * len(games), height=1.9, columns=min(3, len(games)))
    order = labels(grouped(found, options.by))  # a group has the same colour in every script
    places = [(column, game) for column in shown for game in games]
    if len(games) > 3:  # one game after the other, not side by side
        places = [(column, game) for game in games for column in shown]
    for ax, (column, game) in zip(axes, places):
        for group in groups:
            if group.env == game:
                draw(ax, group, column, lines, order.index(group.label))
        dress(ax, column, f"{game}: {PANELS[column]}" if len(games) > 1 else PANELS[column])
    legend(figure, axes)
    wrong = {id(run): alarms.alarms(run) for run in some}
    table = tabled(groups, wrong)
    points = Table(("run", "env", "group", "agent", "update", *PANELS))
    for group in groups:
        for run in group.runs:
            for rank in range(len(run.parts)):
                rows = zip(*(lines[id(run), rank][name] for name in ("update", *PANELS)))
                points.rows += [(str(run.path), group.env, group.label, rank, *row) for row in rows]
    sentence = answered(some, wrong)
    notes = [f"{run.path}: no update is there yet; left out" for run in found if run not in some] + mixtures(groups)
    what = ", ".join(PANELS[name] for name in shown)
    return Answer(table, figure, f"Lines of {what} over updates, one for every agent. {sentence}", points, notes, sentence)


def binned(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the points of one agent's lines: its last update in every bin, and the mean of each column there, [bins] each."""
    parts = np.array_split(rows, min(BINS, len(rows))) if len(rows) else []
    points = {name: np.array([mean(part[name]) for part in parts]) for name in PANELS if name != "skipped"}
    ends = np.cumsum([len(part) for part in parts], dtype=int)
    points["skipped"] = np.array([counted(rows["skipped"][:end]) for end in ends])
    points["update"] = np.array([part["update"][-1] for part in parts], int)
    return points


def mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean(dtype=float)) if len(finite) else np.nan


def draw(ax: Axes, group: Group, column: str, lines: dict[tuple[int, int], dict[str, np.ndarray]], number: int) -> None:
    label, style = group.label, {"linewidth": 0.9, "alpha": 0.8, **line_style(number)}
    for run in group.runs:
        for rank in range(len(run.parts)):
            points = lines[id(run), rank]
            marker = "." if len(points["update"]) < 20 else ""
            ax.plot(points["update"], points[column], label=label, marker=marker, **style)
            label = "_"


def dress(ax: Axes, column: str, title: str) -> None:
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines] or [np.zeros(0)])
    if column in LOGARITHMIC and (values[np.isfinite(values)] > 0).any():
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    if column in FROM_ZERO:  # its own small changes would look large
        ax.set_ylim(0, max(1.0, 1.1 * np.nanmax(values, initial=0)))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set(title=title, xlabel="update")


def tabled(groups: list[Group], wrong: dict[int, list[str]]) -> Table:
    """Return a table with a line a run: means over its agents."""
    headings = ("run", "group", "agents", "updates", "skipped", "entropy, first", "entropy, last", "median gradient")
    table = Table((*headings, "largest gradient", "median step", "memory, first (MiB)", "memory, last (MiB)", "alarms"))
    for group in groups:
        for run in group.runs:
            rows = [rows for rows in map(run.updates, range(len(run.parts))) if len(rows)]
            table.rows.append((str(run.path), group.name, run.agents, *numbers(rows), len(wrong[id(run)])))
    return table


def numbers(rows: list[np.ndarray]) -> tuple:
    """Return the numbers of a line of the table, of the rows of all agents."""

    def ends(name: str) -> tuple[float, float]:
        few = alarms.WINDOW
        return tuple(mean(np.array([mean(table[name][part]) for table in rows])) for part in (slice(few), slice(-few, None)))

    def finite(name: str) -> np.ndarray:
        column = np.concatenate([table[name] for table in rows]).astype(float)
        return column[np.isfinite(column)]

    gradients, steps = finite("grad_norm"), finite("step_norm")
    middle = np.median(gradients) if len(gradients) else np.nan
    step = np.median(steps) if len(steps) else np.nan
    largest = gradients.max(initial=0) if len(gradients) else np.nan
    skipped = sum(counted(table["skipped"]) for table in rows)
    return (sum(map(len, rows)), skipped, *ends("entropy"), middle, largest, step, *ends("rss"))


def answered(some: list[Run], wrong: dict[int, list[str]]) -> str:
    """Return the answer in a sentence."""
    bad = [run for run in some if wrong[id(run)] or run.skipped]
    if not bad:
        return f"No update was skipped, and no alarm is raised, in {len(some)} run{'s' * (len(some) > 1)}."
    alarmed = sum(bool(wrong[id(run)]) for run in bad)
    skipped = sum(sum(run.skipped.values()) for run in bad)
    named = ", ".join(str(run.path) for run in bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
    return f"{alarmed} of {len(some)} runs raise an alarm, and {skipped:,} updates were skipped: see {named}."


if __name__ == "__main__":
    main(answer, Options, __doc__)
