"""Show a person how a run trains: a live panel on a terminal, plain lines in a log. Rank 0 only."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.envs.base import Episode
from gala_mpi.exchange import EXCHANGES
from gala_mpi.exchange.base import Counters
from gala_mpi.job import command
from gala_mpi.job.membership import End
from gala_mpi.job.resume import Origin
from gala_mpi.learners.base import Learner
from gala_mpi.mpi.live_board import COLUMNS, LiveBoard
from gala_mpi.mpi.roll import Roll
from gala_mpi.mpi.world import World

SECONDS_BETWEEN_PANELS = 0.5
SECONDS_BETWEEN_LINES = 10.0
RATE_SECONDS = 30.0  # throughput is that of the last half minute


class Display:
    """The board, shown.

    Args:
        config: the run's settings.
        steps_before: steps that were done before this start.
        frames_per_step: of an Atari game; None: others have none.
    """

    def __init__(self, config: Config, steps_before: int, frames_per_step: int | None):
        self.console = console()
        self._config, self._frames_per_step = config, frames_per_step
        self._live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self._between = SECONDS_BETWEEN_PANELS if self._live else SECONDS_BETWEEN_LINES
        now = time.monotonic()
        self._shown = now
        self._began, self._steps_before = now, steps_before
        self._history = deque([(now, float(steps_before))])

    def open(self) -> None:
        if self._live:
            self._live.start()

    def close(self) -> None:
        if self._live:
            self._live.stop()

    def due(self) -> bool:
        return time.monotonic() - self._shown >= self._between

    def show(self, rows: np.ndarray) -> None:
        """Draw the board's rows, float64 [ranks, len(COLUMNS)]."""
        self._shown = time.monotonic()
        column = dict(zip(COLUMNS, rows.T))
        steps = column["steps"].sum()
        self._history.append((self._shown, steps))
        while len(self._history) > 2 and self._history[0][0] < self._shown - RATE_SECONDS:
            self._history.popleft()
        (then, steps_then), share = self._history[0], steps / self._config.total_steps
        rate = (steps - steps_then) / max(self._shown - then, 1e-9)
        still = max(self._config.total_steps - steps, 0)  # agents end together, some steps after all are done
        left = still / rate if rate > 0 else np.inf
        if self._live:
            self._live.update(self._panel(column, steps, share, rate, left), refresh=True)
        else:
            frames = f" ({self._frames_per_step * rate:,.0f} frames/s)" if self._frames_per_step else ""
            self.console.print(
                f"{steps:,.0f} steps ({share:.1%})  {rate:,.0f} steps/s{frames}  score {score(column)}  "
                f"{standing(column)}{duration(left)} left",
                highlight=False,
                soft_wrap=True,
            )

    def _panel(self, column: dict[str, np.ndarray], steps: float, share: float, rate: float, left: float) -> Panel:
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="right", style="cyan")
        table.add_column()
        table.add_row("", ProgressBar(total=1, completed=min(share, 1), width=40))
        table.add_row("steps", f"{steps:,.0f} of {self._config.total_steps:,} ({share:.1%})")
        frames = f", {self._frames_per_step * rate:,.0f} frames/s" if self._frames_per_step else ""
        table.add_row("speed", f"{rate:,.0f} steps/s{frames}")
        table.add_row("score", f"{score(column)}  [dim]mean of the last {column['recent_episodes'].sum():.0f} episodes")
        table.add_row(
            "updates", f"{column['updates'].min():,.0f} to {column['updates'].max():,.0f}  [dim]slowest and fastest agent"
        )
        if len(column["updates"]) > 1:
            behind, slowest = slowest_agent(column)
            who = f", rank {slowest}" if behind else ""
            table.add_row("behind", f"{counted(behind)}{who}  [dim]the slowest agent, behind the fastest")
        if mixing(column):
            staleness = column["staleness"]
            who = f", rank {staleness.argmax()}" if staleness.any() else ""
            table.add_row("staleness", f"{counted(staleness.max())}{who}  [dim]the most since an agent's last mix")
        if column["skipped"].any():
            worst = column["skipped"].argmax()
            table.add_row("skipped", f"{counted(column['skipped'].sum())}, most by rank {worst}  [dim]a number was not finite")
        table.add_row("time", f"{duration(self._shown - self._began)} so far, {duration(left)} left")
        config = self._config
        title = f"{config.env} · {config.exchange} · {len(column['steps'])} agents × {config.num_envs} environments"
        return Panel(
            table, title=title, subtitle=f"[dim]{escape(command.shown(config.directory))}", width=min(76, self.console.width)
        )


def score(column: dict[str, np.ndarray]) -> str:
    """Return the recent score for people."""
    value = recent_score(column)
    return "–" if np.isnan(value) else f"{value:+.1f}"


def recent_score(column: dict[str, np.ndarray]) -> float:
    """Return the mean score of the last 100 episodes of all agents together; NaN before the first.

    Each agent has posted the mean of its last 100 / n.
    """
    counts = column["recent_episodes"]
    return float((column["recent_score"] * counts).sum() / counts.sum()) if counts.sum() else float("nan")


def slowest_agent(column: dict[str, np.ndarray]) -> tuple[int, int]:
    """Return how many updates the slowest agent is behind the fastest, and its rank."""
    updates = column["updates"]
    return int(updates.max() - updates.min()), int(updates.argmin())


def mixing(column: dict[str, np.ndarray]) -> bool:
    """Return whether agents mix messages of each other, or would if some came."""
    return bool(column["mixes"].any() or column["staleness"].any())


def standing(column: dict[str, np.ndarray]) -> str:
    """Return what a line of the log says of how far agents are apart; empty for an agent alone."""
    words = ""
    if len(column["updates"]) > 1:
        behind, slowest = slowest_agent(column)
        words += f"rank {slowest} is {counted(behind)} behind  " if behind else "no rank behind  "
    if mixing(column):
        words += f"{counted(column['staleness'].max())} since a mix at most  "
    if column["skipped"].any():
        words += f"{counted(column['skipped'].sum())} skipped  "
    return words


def counted(updates: float) -> str:
    """Return a number of updates in words."""
    return f"{updates:,.0f} update" + ("" if updates == 1 else "s")


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss; a dash if they are not finite."""
    if not np.isfinite(seconds):
        return "–"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def console() -> Console:
    """Return a console on standard output.

    Behind mpirun it is a terminal if mpirun's output is one, whatever rank 0's own is: MPICH hands rank 0 a pipe, Open MPI a
    terminal of its making.
    """
    output = _launcher_output()
    if output is None:
        return Console() if sys.stdout.isatty() else Console(width=200)
    if not output.startswith(("/dev/pts/", "/dev/tty")):
        return Console(width=200, force_terminal=False)
    try:
        with open(output, "rb") as file:
            width = os.get_terminal_size(file.fileno()).columns
    except OSError:
        return Console(width=200, force_terminal=False)
    return Console(force_terminal=True, width=width or 80)


def _launcher_output() -> str | None:
    """Return the file that an ancestor named mpirun or mpiexec prints on; None if there is none, here or on another host."""
    process = os.getpid()
    while process > 1:
        try:
            with open(f"/proc/{process}/stat") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(")")
            if name.startswith(("mpirun", "mpiexec", "prterun")):
                return os.readlink(f"/proc/{process}/fd/1")
            if name == "prted":  # Open MPI's daemon, which hands rank 0 a terminal in a batch job too
                return "on another host"
            process = int(rest.split()[1])
        except (OSError, ValueError):
            return None
    return None


def say(text: str) -> None:
    """Print plain words on standard output, not cut at the terminal's width."""
    console().print(text, highlight=False, soft_wrap=True)


class Lines:
    """What is said of something long every 10 s, for those who read a log."""

    def __init__(self):
        self._said = time.monotonic()

    def say(self, words: str) -> None:
        """Say `words` if it is time to. To be called often."""
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            say(words)


def welcome(config: Config, agents: int, library: str, threads: int, origin: Origin, advice: list[str]) -> None:
    """Say what is about to happen, in a few lines."""
    players = f"{agents} agent{'s' * (agents > 1)}" + (
        f" × {config.actors} actor{'s' * (config.actors > 1)}" if config.actors else ""
    )
    memory = f" + {config.memory} of {config.memory_size}" if config.memory else ""
    graph = f" on a {config.topology} graph" if "topology" in EXCHANGES[config.exchange].load().takes else ""
    say(
        f"[bold]gala_mpi[/]: {config.env}, {config.exchange}{graph}, {players} × {config.num_envs} environments, "
        f"{config.total_steps:,} steps, network {config.network}{memory} in {config.precision} on {config.device}, "
        f"threads per rank: {threads}, {library}"
    )
    for line in advice:
        say(escape(line))
    if not origin.number:
        anew = "; no checkpoint of all ranks yet, it begins anew" if config.resume else ""
        say(f"run directory: {escape(command.shown(config.directory))}{anew}")
        return
    how = "exactly as if it had not stopped" if config.exact_resume else "environments begin new episodes"
    run = escape(command.shown(config.directory))
    say(f"resumed from checkpoint {origin.number} in {run} at {origin.steps:,} steps; {how}")
    if origin.steps >= config.total_steps:
        say(f"nothing is left to train: --total-steps {config.total_steps:,} have been done; more are expected to go on")
    if agents != origin.agents:
        say(
            f"{origin.agents} agents before, {agents} now: {succession(origin.shares)}; "
            f"learning rate {config.learning_rate(origin.agents):.3g} before, {config.learning_rate(agents):.3g} now"
        )


def succession(shares: np.ndarray) -> str:
    """Return in words which agents of a resumed run are made of which saved ones; `shares` is float64 [agents, saved]."""
    words = []
    for agent, row in enumerate(shares):
        parts = np.flatnonzero(row)
        if parts.tolist() != [agent]:
            words.append(f"agent {agent} is {'a copy of' if len(parts) == 1 else 'the mean of'} {', '.join(map(str, parts))}")
    return "; ".join(words) or "the others leave"


def bereaved(config: Config, agents: int, lost: list[End]) -> None:
    """Say how the run ended for the ranks that are left, and what to do next."""
    names = ", ".join(f"rank {end.rank} on {end.host}, last seen at update {end.update}" for end in lost)
    say(
        f"ended without {names}: {escape(command.shown(config.directory))}\n"
        f"back to full strength:  {escape(command.resume(config.ranks(agents), config.directory))}"
    )


def replayed(config: Config) -> None:
    """Say that a replay has come out the same."""
    assert config.replay is not None  # else there is nothing to say
    run, recorded = (escape(command.shown(path)) for path in (config.directory, config.replay))
    say(f"replayed: {run}\nevery loss and norm is that of {recorded}, bit for bit")


def farewell(config: Config, agents: int, reason: str) -> None:
    """Say how the run ended, and what to do next; `reason` is why it stopped early, or empty."""
    run = escape(command.shown(config.directory))
    if reason:
        say(f"stopped early ({reason}): {run}\ncontinue:  {escape(command.resume(config.ranks(agents), config.directory))}")
    else:
        say(f"finished: {run}\nplay the policies:  {escape(command.play(config))}")


RECENT = 100  # episodes, over all agents


class LiveReport:
    """A context manager around the training loop. Collective to make and to close.

    Args:
        recent: this agent's last scores before this start, oldest first.

    Attributes:
        steps: of all agents, as far as this rank has heard: never more than there are (see `mpi.live_board`).
        score: mean of the last 100 scores of all agents; NaN before the first.
        games: of how many.
    """

    def __init__(self, world: World, config: Config, learner: Learner, recent: Sequence[float] = ()):
        self._recent: deque[float] = deque(recent, maxlen=math.ceil(RECENT / world.size))
        self._board = LiveBoard(world.comm, updates=learner.updates, steps=learner.steps, **self._scores())
        self._roll = Roll.of(world.comm)
        self._roll.updates = self._last_updates
        self._episodes = 0
        self._mixes = 0
        self._display = None
        if world.root:
            found = registry.resolve(config.env)
            frames = config.atari.over(found.says).frame_skip if found.kind == "atari" else None
            self._display = Display(config, self.steps, frames)

    def __enter__(self) -> LiveReport:
        if self._display:
            self._display.open()
        return self

    def say(self, line: str) -> None:
        """Print a line above the panel, on rank 0."""
        if self._display:
            self._display.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def hide(self) -> None:
        """Show nothing more."""
        if self._display:
            self._display.close()

    def __exit__(self, kind, error, trace) -> None:
        self.hide()
        if kind is None:
            self._roll.updates = None
            self._board.close()

    def _last_updates(self) -> np.ndarray:
        """Return the last update of every rank that this rank knows of, float64 [ranks]. For those who wait."""
        self._board.poll()
        return self._board.rows[:, COLUMNS.index("updates")]

    @property
    def steps(self) -> int:
        return self._board.steps

    @property
    def score(self) -> float:
        return recent_score(dict(zip(COLUMNS, self._board.rows.T)))

    @property
    def games(self) -> int:
        return int(self._board.rows[:, COLUMNS.index("recent_episodes")].sum())

    @property
    def recent(self) -> tuple[float, ...]:
        """This agent's last scores, oldest first."""
        return tuple(self._recent)

    def _scores(self) -> dict[str, float]:
        return {
            "recent_score": float(np.mean(self._recent)) if self._recent else 0.0,
            "recent_episodes": len(self._recent),
        }

    @property
    def numbers(self) -> dict[str, float]:
        """What is shown of all agents, by name. Steps and updates apart."""
        column = dict(zip(COLUMNS, self._board.rows.T))
        sums = {name: column[name].sum() for name in ("episodes", "mixes", "skipped")}
        most = {"staleness": column["staleness"].max(), "behind": slowest_agent(column)[0]}
        return {"score": recent_score(column), **sums, **most}

    def update(self, learner: Learner, episodes: list[Episode], counters: Counters, skipped: int) -> None:
        """Post this rank's row after an update, and take in others'."""
        self._episodes += len(episodes)
        self._recent.extend(episode.score for episode in episodes)
        self._mixes += len(counters.mixes)
        self._board.post(
            updates=learner.updates,
            steps=learner.steps,
            episodes=self._episodes,
            mixes=self._mixes,
            staleness=counters.staleness,
            skipped=skipped,
            **self._scores(),
        )
        self.refresh()

    def refresh(self) -> None:
        """Take in others' rows; on rank 0, draw them now and then."""
        self._board.poll()
        if self._display and self._display.due():
            self._display.show(self._board.rows)
