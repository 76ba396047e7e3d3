"""Show how a run is doing, live or afterwards, from its files alone: no MPI, no torch, nothing that the run would notice.

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
from gala_mpi.run import checkpoints, evaluations, layout, reader
from gala_mpi.run.evaluations import Evaluated
from gala_mpi.run.opened import share_done
from gala_mpi.run.parts import UNREADABLE, NewestRows, Part, newest_row, starting_hours
from gala_mpi.run.tables import SECONDS_BETWEEN_WRITES

SECONDS_BETWEEN_LOOKS = 2.0
RECENT_UPDATES = 200  # of each agent, behind the speed
RECENT_MESSAGES = 200  # that each agent has mixed, behind the lag
RECENT_EPISODES = 100  # of all agents, behind the score
SECONDS_OF_SILENCE, UPDATES_OF_SILENCE = 15.0, 10  # a running run writes nothing for the sum of both at most
IDLE_SECONDS = 10.0  # of training: a start that brings less is hardly worth its own time
COLOURS = {"running": "green", "finished": "bold green", "stopped": "yellow", "stale": "bold red"}


@dataclass(frozen=True)
class Watch:
    """Show how a run is doing, from its files alone."""

    run: Path
    """The run directory, of a live or an ended run."""
    once: bool = False
    """Print once instead of following the run. So it is where output is no terminal, too."""
    value: Optional[Literal["state", "steps", "rate", "score", "evaluation", "idle_starts"]] = None
    """Print one value alone, for scripts. rate: steps/s; evaluation: the newest one's score, nan before it; idle_starts: how
    many of the last starts brought no progress."""


@dataclass(frozen=True)
class RunStatus:
    """A run at one moment.

    Attributes:
        silence: s since the last row.
        readable: how many agents have metrics that can be read.
        recent: the newest `updates` rows of every agent that has some, by rank.
        lags: how many updates each of the newest mixed messages was behind its reader; negative: ahead; int64 [messages].
        pulls: how many updates of others came between an agent's newest pulls of a shared vector and what it added to it; int64
            [pulls].
        score: mean of the newest scores; NaN before the first.
        checkpoint: the number of the newest one that all agents have saved; 0 before the first.
        saved: the update of every agent in it, by rank.
        saved_ago: s.
        lost: the ranks that have died since the run was last started.
        starts: metadata about each start.
        idle_starts: how many of the last starts have brought next to no progress that lasts.
        evaluated: the newest evaluation; None: there is none.
    """

    config: Config
    agents: int
    silence: float
    readable: int
    recent: dict[int, np.ndarray]
    lags: np.ndarray
    pulls: np.ndarray
    score: float
    checkpoint: int
    saved: dict[int, int]
    saved_ago: float
    lost: set[int]
    starts: list[dict[str, Any]]
    idle_starts: int
    evaluated: Evaluated | None = None

    @property
    def newest(self) -> dict[int, np.void]:
        """The last `updates` row of every agent that has some, by rank."""
        return {rank: rows[-1] for rank, rows in self.recent.items()}

    @property
    def steps(self) -> int:
        """Steps done, over all agents whose metrics can be read."""
        return sum(int(row["steps"]) for row in self.newest.values())

    @property
    def rate(self) -> float:
        """Steps/s of all agents together, over their newest updates."""
        return sum(map(_rate, self.recent.values()))

    @property
    def evaluation(self) -> float:
        """The score of the newest evaluation; NaN before the first."""
        return self.evaluated.score if self.evaluated else math.nan

    @property
    def state(self) -> str:
        """running, finished, stopped or stale: see the top of this file."""
        if share_done(self.steps, self.readable, self.agents, self.config.total_steps) >= 1:
            return "finished"
        update_seconds = max((sum(row[name] for name in SECTIONS) for row in self.newest.values()), default=0)
        if self.silence < SECONDS_OF_SILENCE + UPDATES_OF_SILENCE * update_seconds:
            return "running"
        return "stopped" if self.all_saved else "stale"

    @property
    def all_saved(self) -> bool:
        """Whether the newest checkpoint holds the newest update of every living agent."""
        living = {rank: row["update"] for rank, row in self.newest.items() if rank not in self.lost}
        return bool(self.saved) and living.items() <= self.saved.items()

    @property
    def updates(self) -> dict[int, int]:
        """The update of every living agent at one moment, by rank.

        While the run goes on, agents write their rows at different times. So the moment is the newest of which all of them have
        written, but for those that are hung.
        """
        living = {rank: rows for rank, rows in self.recent.items() if rank not in self.lost}
        moment = math.inf
        if self.state == "running" and not self.all_saved:
            longest = max((np.diff(rows["hours"]).max(initial=0) for rows in living.values()), default=0)
            moment = max((rows["hours"][-1] for rows in living.values()), default=0) - longest - SECONDS_BETWEEN_WRITES / 3600
        return {rank: _update_at(rows, moment) for rank, rows in living.items()}

    @property
    def mixing(self) -> bool:
        """Whether agents mix messages of each other, or would if some came."""
        return len(self.lags) > 0 or any(row["staleness"] > 0 for row in self.newest.values())


def parse(arguments: list[str]) -> Watch:
    return cli.parse(
        Watch,
        "watch",
        "Show how a run is doing, live or afterwards, from its files alone: on any host that sees them, without MPI.\n\n"
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
    with cli.ignore_broken_pipe():
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
    """Read what the run's files say now: the ends of its tables alone, however large they are.

    Raises:
        SettingError: there is no run in `run`, or its run.h5 is damaged.
    """
    settings, agents = reader.read_config(run, "run directory"), reader.read_agents(run)
    ends = NewestRows(run)
    recent, scores, times, readable = {}, [], [], 0
    lags, pulls = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for rank in range(agents):
        try:
            rows = ends.of(rank, {"updates": RECENT_UPDATES, "episodes": RECENT_EPISODES}, {"mixes": RECENT_MESSAGES})
        except UNREADABLE:  # not there yet, or damaged: the number of agents tells
            continue
        readable += 1
        if len(rows["updates"]):
            recent[rank] = rows["updates"]
        scores.extend(rows["episodes"]["score"])
        times.extend(rows["episodes"]["hours"])
        lags.append(rows["mixes"]["update"] - rows["mixes"]["version"])
        if not len(rows["mixes"]):
            ages = rows["updates"]["age"]
            pulls.append(ages[np.isfinite(ages)].astype(np.int64))
    newest_scores = np.array(scores)[np.argsort(times, kind="stable")][-RECENT_EPISODES:]
    checkpoint, saved, saved_at = _newest_checkpoint(run)
    written = [path.stat().st_mtime for path in (run / "metrics").glob("rank*.h5")]
    return RunStatus(
        config=settings,
        agents=agents,
        silence=time.time() - max(written, default=layout.run_file(run).stat().st_mtime),
        readable=readable,
        recent=recent,
        lags=np.concatenate(lags),
        pulls=np.concatenate(pulls),
        score=float(np.mean(newest_scores)) if len(newest_scores) else math.nan,
        checkpoint=checkpoint,
        saved=saved,
        saved_ago=time.time() - saved_at,
        lost=layout.lost(run),
        starts=reader.read_starts(run),
        idle_starts=_idle_starts(ends.first),
        evaluated=_newest_evaluation(run),
    )


def _rate(rows: np.ndarray) -> float:
    """Return the steps/s of one agent over its last updates; 0 before the second."""
    seconds = 3600 * (rows["hours"][-1] - rows["hours"][0])
    return float((rows["steps"][-1] - rows["steps"][0]) / seconds) if seconds > 0 else 0.0


def _update_at(rows: np.ndarray, hours: float) -> int:
    """Return at which update an agent was, by its newest `updates` rows; before these it is taken to have been as fast."""
    missing, span = rows["hours"][0] - hours, rows["hours"][-1] - rows["hours"][0]
    if missing > 0 and span > 0:
        return max(0, round(rows["update"][0] - missing * (rows["update"][-1] - rows["update"][0]) / span))
    return round(float(np.interp(hours, rows["hours"], rows["update"])))


def _newest_checkpoint(run: Path) -> tuple[int, dict[int, int], float]:
    """Return the newest complete checkpoint's number, each agent's update in it, and when it was saved; 0 before the first."""
    for number in reversed(checkpoints.numbers(run)):
        try:
            if saved := checkpoints.saved_updates(run, number):
                return number, saved, layout.checkpoint_file(run, number, 0).parent.stat().st_mtime
        except UNREADABLE:  # damaged, or just deleted
            continue
    return 0, {}, math.nan


def _newest_evaluation(run: Path) -> Evaluated | None:
    try:
        return next(reversed(evaluations.read(run)), None)
    except UNREADABLE:  # as the run's settings were not
        return None


def _idle_starts(first: list[Part]) -> int:
    """Return how many of the last starts have brought next to no training that a later one could build on.

    Args:
        first: the parts of rank 0's metrics.
    """
    try:
        begun = [hours for hours in starting_hours(first) if not math.isnan(hours)]
        ended = [hours for part in first[-1:] for hours in newest_row(part, "updates")["hours"].tolist()]
    except UNREADABLE:
        return 0
    gains = [3600 * (after - before) for before, after in pairwise(begun + ended)]
    return next((i for i, gain in enumerate(reversed(gains)) if gain > IDLE_SECONDS), len(gains))


def panel(run: Path, seen: RunStatus) -> Panel:
    """Draw what a person sees of a run."""
    c, share = seen.config, seen.steps / seen.config.total_steps
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="cyan")
    table.add_column()
    table.add_row("", ProgressBar(total=1, completed=min(share, 1), width=40))
    silence = "" if seen.state in ("running", "finished") else "  [dim]no row for " + _duration(seen.silence)
    table.add_row("state", f"[{COLOURS[seen.state]}]{seen.state}[/]{silence}")
    where = sorted({str(host) for host in seen.starts[-1]["hosts"]})
    job = f", job {seen.starts[-1]['slurm_job']}" if seen.starts[-1].get("slurm_job") else ""
    table.add_row("ranks", f"{seen.agents} on {len(where)} {'host' if len(where) == 1 else 'hosts'}{job}")
    if len(seen.newest) < seen.agents:
        table.add_row("", f"[yellow]metrics of {len(seen.newest)} of {seen.agents} agents can be read")
    if seen.lost:
        table.add_row("", f"[red]lost: {', '.join(f'rank {rank}' for rank in sorted(seen.lost))}")
    table.add_row("steps", f"{seen.steps:,} of {c.total_steps:,} ({share:.1%})")
    left = max(c.total_steps - seen.steps, 0) / seen.rate if seen.rate else math.nan
    table.add_row("speed", f"{seen.rate:,.0f} steps/s" + (f", {_duration(left)} left" if seen.state == "running" else ""))
    table.add_row("score", f"{_number(seen.score, '+.1f')}  [dim]mean of the newest {RECENT_EPISODES} episodes at most")
    if seen.evaluated:
        table.add_row("evaluation", str(seen.evaluated))
    if updates := seen.updates:
        slowest, fastest = min(updates, key=lambda rank: updates[rank]), max(updates.values())
        table.add_row("updates", f"{updates[slowest]:,} to {fastest:,}  [dim]slowest and fastest agent")
        if seen.agents > 1:
            behind = fastest - updates[slowest]
            who = f", rank {slowest}" if behind else ""
            table.add_row("behind", f"{_counted(behind)}{who}  [dim]the slowest agent, behind the fastest")
        if seen.mixing:
            staleness = {rank: int(row["staleness"]) for rank, row in seen.newest.items() if rank in updates}
            stalest = max(staleness, key=lambda rank: staleness[rank])
            who = f", rank {stalest}" if staleness[stalest] else ""
            table.add_row("staleness", f"{_counted(staleness[stalest])}{who}  [dim]the most since an agent's last mix")
        skipped = {rank: max(0, int(row["skipped"])) for rank, row in seen.newest.items()}  # -1: an older file does not say
        if any(skipped.values()):
            worst = max(skipped, key=lambda rank: skipped[rank])
            said = f"{_counted(sum(skipped.values()))}, most by rank {worst}"
            table.add_row("skipped", f"[yellow]{said}[/]  [dim]a number was not finite; since the start")
        if len(seen.lags):
            lags = np.maximum(seen.lags, 0)
            table.add_row("lag", f"{lags.mean():.1f} updates, at most {lags.max():,}  [dim]peer behind reader; ahead is 0")
        elif len(seen.pulls):
            mean, most = seen.pulls.mean(), seen.pulls.max()
            table.add_row("lag", f"{mean:.1f} updates, at most {most:,}  [dim]of others, from a pull to the push")
        table.add_row("trained", _duration(3600 * max(row["hours"] for row in seen.newest.values())))
    kept = "none yet"
    if seen.checkpoint:
        kept = f"{seen.checkpoint}, update {min(seen.saved.values()):,}, {_duration(seen.saved_ago)} ago"
    table.add_row("checkpoint", kept)
    idle = f"  [yellow]the last {seen.idle_starts} starts brought no progress" if seen.idle_starts > 1 else ""
    table.add_row("restarts", f"{len(seen.starts) - 1}{idle}")
    return Panel(table, title=f"{c.env} · {c.exchange}", subtitle=f"[dim]{run}", width=76)


def _counted(updates: int) -> str:
    return f"{updates:,} update" + ("" if updates == 1 else "s")


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _duration(seconds: float) -> str:
    return "–" if math.isnan(seconds) else str(timedelta(seconds=int(seconds)))


if __name__ == "__main__":
    sys.exit(main())
