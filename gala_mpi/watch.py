"""How a run is doing, live or afterwards, from its files alone: no MPI, no torch, nothing that the run would propagation_delay.

    python -m gala_mpi.watch runs/pong-gossip-...
    python -m gala_mpi.watch runs/pong-gossip-... --value steps

A run is *finished* when all steps are done; *running* while rows come; after some silence *stopped* if its newest checkpoint
holds its newest update, and else *stale*: killed, or hung.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Optional

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from gala_mpi import cli
from gala_mpi.clock import SECTIONS
from gala_mpi.config import Config
from gala_mpi.errors import SettingError
from gala_mpi.run import layout, reader

SECONDS_BETWEEN_LOOKS = 2.0
RECENT_UPDATES = 200  # of each agent, behind throughput and age
RECENT_EPISODES = 100  # of all agents, behind the score
SECONDS_OF_SILENCE, UPDATES_OF_SILENCE = 15.0, 10  # a running run writes nothing for the sum of both at most
IDLE_SECONDS = 10.0  # of training: a start that brings less is hardly worth its own time
COLOURS = {"running": "green", "finished": "bold green", "stopped": "yellow", "stale": "bold red"}


@dataclass(frozen=True)
class Watch:
    """How a run is doing, from its files alone."""

    run: Path
    """The run directory, of a live or an ended run."""
    once: bool = False
    """Print once instead of following the run. So it is where output is no terminal, too."""
    value: Optional[Literal["state", "steps", "rate", "score", "idle_starts"]] = None
    """Print one value alone, for scripts. rate: steps/s; idle_starts: how many of the last starts brought no progress."""


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment.

    Attributes:
        silence: s since the last row.
        newest: the last `updates` row of every agent whose metrics can be read, by rank.
        rate: steps/s of these agents together, over their last updates.
        score: mean of the newest scores; NaN before the first.
        age: mean age of the messages mixed of late, updates; NaN without any.
        checkpoint: the newest number that all agents have saved; 0 before the first.
        saved: the update of every agent in it, by rank.
        saved_ago: s.
        lost: the ranks that have died since the run was last started.
        starts: metadata about each start.
        idle_starts: how many of the last starts have brought next to no progress that lasts.
    """

    config: Config
    agents: int
    silence: float
    newest: dict[int, np.void]
    rate: float
    score: float
    age: float
    checkpoint: int
    saved: dict[int, int]
    saved_ago: float
    lost: set[int]
    starts: list[dict[str, Any]]
    idle_starts: int

    @property
    def steps(self) -> int:
        return sum(int(row["steps"]) for row in self.newest.values())

    @property
    def state(self) -> str:
        if self.steps >= self.config.total_steps:
            return "finished"
        update_seconds = max((sum(row[name] for name in SECTIONS) for row in self.newest.values()), default=0)
        if self.silence < SECONDS_OF_SILENCE + UPDATES_OF_SILENCE * update_seconds:
            return "running"
        living = {rank: row["update"] for rank, row in self.newest.items() if rank not in self.lost}
        return "stopped" if self.saved and living.items() <= self.saved.items() else "stale"


def parse(arguments: list[str]) -> Watch:
    return cli.parse(
        Watch,
        "watch",
        "How a run is doing, live or afterwards, from its files alone: on any host that sees them, without MPI.\n\n"
        "  python -m gala_mpi.watch runs/pong-...\n"
        "  python -m gala_mpi.watch runs/pong-... --value steps",
        arguments,
    )


def main(arguments: list[str] | None = None) -> int:
    wanted = parse(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        seen = read_status(wanted.run)
    except SettingError as error:
        print(f"gala_mpi: {error}", file=sys.stderr)
        return 2
    if wanted.value:
        print(getattr(seen, wanted.value))
    elif wanted.once or not console.is_terminal:
        console.print(panel(wanted.run, seen))
    else:
        follow(wanted.run, console)
    return 0


def follow(run: Path, console: Console) -> None:
    """Draw the run until it is finished, or the user has seen enough."""
    with Live(console=console, auto_refresh=False) as live:
        try:
            while True:
                seen = read_status(run)
                live.update(panel(run, seen), refresh=True)
                if seen.state == "finished":
                    return
                time.sleep(SECONDS_BETWEEN_LOOKS)
        except KeyboardInterrupt:
            return


def read_status(run: Path) -> RunStatus:
    """What the run's files say now.

    Raises:
        SettingError: there is no run in `run`, or its run.h5 is damaged.
    """
    settings, agents = reader.read_config(run, "run directory"), reader.read_agents(run)
    updates, scores, times = {}, [], []
    for rank in range(agents):
        try:
            if len(rows := reader.newest_rows(run, rank, "updates", RECENT_UPDATES)):
                updates[rank] = rows
            episodes = reader.newest_rows(run, rank, "episodes", RECENT_EPISODES)
        except (OSError, KeyError, ValueError):  # not there yet, or damaged: the number of agents tells
            continue
        scores.extend(episodes["score"])
        times.extend(episodes["hours"])
    recent = np.array(scores)[np.argsort(times, kind="stable")][-RECENT_EPISODES:]
    ages = [age for rows in updates.values() for age in rows["age"] if not np.isnan(age)]
    checkpoint, saved, saved_at = _newest_checkpoint(run)
    written = [path.stat().st_mtime for path in (run / "metrics").glob("rank*.h5")]
    return RunStatus(
        config=settings,
        agents=agents,
        silence=time.time() - max(written, default=layout.run_file(run).stat().st_mtime),
        newest={rank: rows[-1] for rank, rows in updates.items()},
        rate=sum(map(_rate, updates.values())),
        score=float(np.mean(recent)) if len(recent) else math.nan,
        age=float(np.mean(ages)) if ages else math.nan,
        checkpoint=checkpoint,
        saved=saved,
        saved_ago=time.time() - saved_at,
        lost=layout.lost(run),
        starts=reader.read_starts(run),
        idle_starts=_idle_starts(run),
    )


def _rate(rows: np.ndarray) -> float:
    """Steps/s of one agent over its last updates; 0 before the second."""
    seconds = 3600 * (rows["hours"][-1] - rows["hours"][0])
    return float((rows["steps"][-1] - rows["steps"][0]) / seconds) if seconds > 0 else 0.0


def _newest_checkpoint(run: Path) -> tuple[int, dict[int, int], float]:
    """The newest number that all agents have saved, each agent's update in it, and when; 0 before the first."""
    for folder in sorted((run / "checkpoints").glob("[0-9]*"), reverse=True):
        try:
            if saved := reader.saved_updates(run, int(folder.name)):
                return int(folder.name), saved, folder.stat().st_mtime
        except (OSError, KeyError, ValueError):  # damaged, or just deleted
            continue
    return 0, {}, math.nan


def _idle_starts(run: Path) -> int:
    """How many of the last starts have brought next to no training that a later one could build on."""
    try:
        begun = [hours for hours in reader.starting_hours(run, 0) if not math.isnan(hours)]
        ended = reader.newest_rows(run, 0, "updates", 1)["hours"].tolist()
    except (OSError, KeyError, ValueError):
        return 0
    gains = [3600 * (after - before) for before, after in pairwise(begun + ended)]
    return next((i for i, gain in enumerate(reversed(gains)) if gain > IDLE_SECONDS), len(gains))


def panel(run: Path, seen: RunStatus) -> Panel:
    """What a person sees of it."""
    c, share = seen.config, seen.steps / seen.config.total_steps
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="cyan")
    table.add_column()
    table.add_row("", ProgressBar(total=1, completed=min(share, 1), width=40))
    silence = "" if seen.state in ("running", "finished") else "  [dim]no row for " + _duration(seen.silence)
    table.add_row("state", f"[{COLOURS[seen.state]}]{seen.state}[/]{silence}")
    where = sorted({str(host) for host in seen.starts[-1]["hosts"]})
    job = f", job {seen.starts[-1]['slurm_job']}" if seen.starts[-1]["slurm_job"] else ""
    table.add_row("ranks", f"{seen.agents} on {len(where)} {'host' if len(where) == 1 else 'hosts'}{job}")
    if len(seen.newest) < seen.agents:
        table.add_row("", f"[yellow]metrics of {len(seen.newest)} of {seen.agents} agents can be read")
    if seen.lost:
        table.add_row("", f"[red]lost: {', '.join(f'rank {rank}' for rank in sorted(seen.lost))}")
    table.add_row("steps", f"{seen.steps:,} of {c.total_steps:,} ({share:.1%})")
    left = (c.total_steps - seen.steps) / seen.rate if seen.rate else math.nan
    table.add_row("speed", f"{seen.rate:,.0f} steps/s" + (f", {_duration(left)} left" if seen.state == "running" else ""))
    table.add_row("score", f"{_number(seen.score, '+.1f')}  [dim]mean of the newest {RECENT_EPISODES} episodes at most")
    if seen.newest:
        updates = [row["update"] for row in seen.newest.values()]
        table.add_row("updates", f"{min(updates):,} to {max(updates):,}  [dim]slowest and fastest agent")
        table.add_row("trained", _duration(3600 * max(row["hours"] for row in seen.newest.values())))
        most = max(row["staleness"] for row in seen.newest.values())
        if most or not math.isnan(seen.age):  # messages are mixed
            table.add_row("age", f"{_number(seen.age, '.1f')} updates  [dim]of the messages mixed")
            table.add_row("staleness", f"{most:,}  [dim]most updates without a mix")
    kept = "none yet"
    if seen.checkpoint:
        kept = f"{seen.checkpoint}, update {min(seen.saved.values()):,}, {_duration(seen.saved_ago)} ago"
    table.add_row("checkpoint", kept)
    idle = f"  [yellow]the last {seen.idle_starts} starts brought no progress" if seen.idle_starts > 1 else ""
    table.add_row("restarts", f"{len(seen.starts) - 1}{idle}")
    return Panel(table, title=f"{c.env} · {c.exchange}", subtitle=f"[dim]{run}", width=76)


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _duration(seconds: float) -> str:
    return "–" if math.isnan(seconds) else str(timedelta(seconds=int(seconds)))


if __name__ == "__main__":
    sys.exit(main())
