"""Play a run's policies, every agent's and the averaged one, and say how good they are.

    python -m gala_mpi.evaluate runs/pong-gossip-...
    mpirun -n 8 python -m gala_mpi.evaluate runs/pong-gossip-... --episodes 100 --video pong.mp4

Episodes start as those of the run did (Atari: with up to 30 no-ops); actions are the most probable ones unless --sample. Under
mpirun the episodes are dealt over the ranks. The table goes to the terminal and every episode to the run's run.h5.
"""

from __future__ import annotations

from gala_mpi.job import launch

launch.set_environment(command=__name__ == "__main__")  # before numpy, torch and MPI are imported

import dataclasses
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Optional, cast

import numpy as np
import torch
from rich.progress import Progress as RichProgress
from rich.table import Table

from gala_mpi import cli, display
from gala_mpi.cli import require, require_file, require_whole
from gala_mpi.config import Config
from gala_mpi.envs import registry
from gala_mpi.envs.base import Environments
from gala_mpi.envs.film import make_filmed
from gala_mpi.envs.modules import same_directory
from gala_mpi.envs.streams import seed_global
from gala_mpi.errors import FAILED, FINISHED, REFUSED, JobError, SettingError
from gala_mpi.games import Games, game_seeds
from gala_mpi.mpi.world import World
from gala_mpi.policy import make_network, named_anew, start_once
from gala_mpi.run import checkpoints, layout, reader, writer
from gala_mpi.run.policies import EMA, MEAN, Policies, check_name, find, read

MOST_EPISODES = 1_000_000  # every rank has an environment for each of its episodes
TAG = 1  # of the words to rank 0 that a game has been played
GAMES = np.dtype([("policy", "<i4"), ("game", "<i4"), ("score", "<f4"), ("length", "<i4")])


@dataclass(frozen=True)
class Evaluation:
    """Play a run's policies and say how good they are."""

    run: Path
    """The run directory."""
    episodes: int = 10
    """Episodes per policy."""
    checkpoint: str = "newest"
    """newest (or last), best (by evaluations while the run trained, else by training score) or a checkpoint's number."""
    policies: Literal["all", "mean", "ema"] = "all"
    """all = every agent's policy and the one with their averaged parameters; mean = the averaged one alone;
    ema = the one with the mean of the agents' moving averages, of a run with --ema.
    Agents of --exchange server have one policy: that of the vector that they share."""
    sample: bool = False
    """Draw actions from the policy instead of taking the most probable one."""
    max_steps: int = 100_000
    """Cut an episode off after so many steps, for environments that never end one; its score is that of these. A line says how
    many were cut. (Atari games end after 27,000 by default.)"""
    seed: int = 1
    """Seeds the episodes: the same seed deals the same episodes to every policy, on any number of ranks."""
    video: Optional[Path] = None
    """Also film one episode of the averaged policy: FILE.mp4 or FILE.gif."""
    video_steps: Optional[int] = None
    """Film so many steps at most. None: to the end of the episode."""
    env: Optional[str] = None
    """The run's environment as MODULE:ID, where the run does not say which module registers it, or the module has moved."""
    network: Optional[str] = None
    """The run's network as MODULE:FUNCTION, where the module has moved."""


@dataclass(frozen=True)
class Selection:
    """What all ranks agree on: what is asked, the run's settings, the checkpoint and whose policies it holds."""

    wanted: Evaluation
    settings: Config
    number: int
    agents: list[int]


def main(arguments: list[str]) -> None:
    with World() as world:
        selection = world.decide(lambda: choose(arguments))
        policies = load(selection)
        torch.set_num_threads(world.threads)
        with Played(world, len(policies.vectors) * selection.wanted.episodes) as played:
            environments, mine, cut = play_my_share(selection, policies.vectors, world, played)
        games, cut = np.concatenate(world.comm.allgather(mine)), world.sum(cut)
        if world.root:
            report(selection, policies, games, cut)
            if selection.wanted.video:
                film(selection, policies)
        if environments:
            environments.close()  # last: who knows what a user's environment does then


def play_alone(arguments: list[str]) -> int:
    """Do as `main` does in this process alone, without MPI and on one thread, for a run that is evaluated while it trains
    (`job.evaluations`). Return an exit status."""
    torch.set_num_threads(1)
    alone = Alone()
    try:
        wanted = parse(arguments)
        selection = select(dataclasses.replace(wanted, video=None))
        policies = load(selection)
        with Played(alone, len(policies.vectors) * wanted.episodes) as played:
            environments, games, cut = play_my_share(selection, policies.vectors, alone, played)
        report(selection, policies, games, cut, while_training=True)
        if wanted.video:
            _film_if_possible(dataclasses.replace(selection, wanted=wanted), policies)
        if environments:
            environments.close()
    except (SettingError, JobError) as error:
        print(f"gala_mpi: {error}", file=sys.stderr)
        return REFUSED if isinstance(error, SettingError) else FAILED
    return FINISHED


def _film_if_possible(selection: Selection, policies: Policies) -> None:
    try:
        film(selection, policies)
    except SettingError as error:  # it cannot be rendered, here
        print(f"gala_mpi: warning: evaluations are not filmed: {error}", file=sys.stderr)


class Alone:
    """This process as the only one that plays, where MPI has not started; as far as one plays, a `World`."""

    rank, size, threads, root = 0, 1, 1, True


def choose(arguments: list[str]) -> Selection:
    """Parse and check. Raises SettingError."""
    return select(parse(arguments))


def select(wanted: Evaluation) -> Selection:
    """Check, and say what will be played. Raises SettingError."""
    check(wanted)
    settings = named_anew(reader.read_config(wanted.run, "run directory"), wanted.env, wanted.network)
    number = find(wanted.run, wanted.checkpoint)
    environments = start_once(settings)
    if wanted.video is not None:
        with same_directory():
            make_filmed(settings.env, **settings.env_options).close()
    selection = Selection(wanted, settings, number, checkpoints.ranks(wanted.run, number))
    try:
        policies = load(selection)
    except JobError as error:
        raise SettingError(f"--checkpoint {wanted.checkpoint}: {error}") from None
    needed = len(make_network(settings, environments.spaces)[1])
    saved = len(next(iter(policies.vectors.values())))
    if saved != needed:
        raise SettingError(
            f"--env {settings.env}: its observations and actions take a network of {needed:,} parameters, the run's has "
            f"{saved:,}; the environment as it was when the run was started is expected"
        )
    absolute = {name: path and path.absolute() for name, path in (("run", wanted.run), ("video", wanted.video))}
    return dataclasses.replace(selection, wanted=dataclasses.replace(wanted, **absolute))  # an environment may change directory


def parse(arguments: list[str]) -> Evaluation:
    return cli.parse(
        Evaluation,
        "evaluate",
        "Play a run's policies: mean score ± standard error, up to 30 no-ops at the start.\n\n"
        "  python -m gala_mpi.evaluate runs/pong-...\n"
        "  mpirun -n 8 python -m gala_mpi.evaluate runs/pong-... --episodes 100\n"
        "  python -m gala_mpi.evaluate runs/pong-... --policies mean --video pong.mp4",
        arguments,
    )


def check(wanted: Evaluation) -> None:
    """Refuse what cannot work, before the first episode. Raises SettingError."""
    episodes = wanted.episodes
    require(1 <= episodes <= MOST_EPISODES, "--episodes", episodes, f"a whole number from 1 to {MOST_EPISODES:,}")
    require_whole("--max-steps", wanted.max_steps, 1)
    require_whole("--video-steps", wanted.video_steps, 1)
    require_whole("--seed", wanted.seed, 0)
    check_name(wanted.checkpoint)
    require_file("--video", wanted.video, ".mp4", ".gif")


def load(selection: Selection) -> Policies:
    """Read every policy that plays, before the first episode: a run that goes on deletes them.

    Raises:
        JobError, SettingError: see `policies.read`.
    """
    wanted = selection.wanted
    return read(wanted.run, selection.number, selection.agents, wanted.policies == "all", wanted.policies == "ema")


class Played:
    """How many games have been played, shown by rank 0: as a bar on a terminal, else as a line now and then.

    A context manager around the games of a rank, which it leaves when those of all are played. Collective.

    Args:
        games: of all ranks.
    """

    def __init__(self, world: World | Alone, games: int):
        self._world, self._games, self._played = world, games, 0
        self._words: list[Any] = []  # to rank 0, on their way: one of each game
        self._began, self._lines = time.monotonic(), display.Lines()
        console = display.console()
        shown = isinstance(world, World) and world.root and console.is_terminal
        self._bar = RichProgress(console=console, transient=True, disable=not shown)
        self._task = self._bar.add_task("playing", total=games)

    def __enter__(self) -> Played:
        self._bar.start()
        return self

    def count(self, games: int) -> None:
        """Count `games` more of this rank, and show how many all have played. To be called often."""
        if isinstance(self._world, World) and not self._world.root:
            self._words += [self._world.comm.isend(None, dest=0, tag=TAG) for _ in range(games)]
        else:
            self._played += games
            self._show()

    def _show(self) -> None:
        while isinstance(self._world, World) and self._world.comm.iprobe(tag=TAG):
            self._world.comm.recv(tag=TAG)
            self._played += 1
        self._bar.update(self._task, completed=self._played)
        if self._bar.disable:
            self._lines.say(self._progress())

    def _progress(self) -> str:
        """Say how far the games are. The first to end tell little of how long the rest will take."""
        passed = time.monotonic() - self._began
        left = passed / self._played * (self._games - self._played) if self._played else np.inf
        return f"{self._played:,} of {self._games:,} games played, {display.duration(left)} left"

    def __exit__(self, kind, error, trace) -> None:
        while kind is None and self._world.root and self._played < self._games:
            time.sleep(0.01)
            self._show()
        self._bar.stop()
        if kind is None and isinstance(self._world, World):
            self._world.wait()  # rank 0 has heard every word then
            for word in self._words:
                word.wait()


def play_my_share(
    selection: Selection, policies: dict[int, np.ndarray], world: World | Alone, played: Played
) -> tuple[Environments | None, np.ndarray, int]:
    """Play this rank's episodes of every policy; return the environments (None: there was nothing to play), rows of GAMES, and
    how many episodes were cut off.

    Raises:
        JobError: an environment gave what is not finite.
    """
    mine = range(world.rank, selection.wanted.episodes, world.size)
    if not mine:
        return None, np.array([], GAMES), 0
    settings = selection.settings
    options = {"threads": world.threads, "workers": settings.env_workers, **settings.env_options}
    seed_global(np.random.SeedSequence(selection.wanted.seed, spawn_key=(world.rank, 1)))  # as they are made they may draw
    environments = registry.make(settings.env, len(mine), **options)
    network, flat = make_network(settings, environments.spaces)
    seed, sample = selection.wanted.seed, selection.wanted.sample
    generator = torch.Generator().manual_seed(seed + world.rank)  # of sampled actions
    rows: list[tuple[int, int, float, int]] = []
    cut = 0
    for policy, parameters in policies.items():
        flat.data.copy_(torch.from_numpy(parameters))
        seed_global(np.random.SeedSequence(seed, spawn_key=(world.rank, 0)))  # environments may draw from these streams
        batch = Games(environments, game_seeds(seed, mine), selection.wanted.max_steps)
        games = batch.play(network, generator if sample else None, played.count)
        rows += [(policy, number, game.score, game.length) for number, game in zip(mine, games)]
        cut += batch.cut
    return environments, np.array(rows, GAMES), cut


def report(selection: Selection, policies: Policies, games: np.ndarray, cut: int, while_training: bool = False) -> None:
    """Add the episodes, of which so many were cut off, to run.h5 and print the table."""
    wanted, run = selection.wanted, selection.wanted.run
    how = "sampled actions" if wanted.sample else "most probable actions"
    table = Table(title=f"{selection.settings.env}, checkpoint {selection.number}, {wanted.episodes} games a policy, {how}")
    for heading in ("policy", "mean", "± standard error", "lowest", "highest", "mean length (steps)"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for policy in policies.vectors:
        mine = games[games["policy"] == policy]
        scores = mine["score"].astype(float)
        cells = [scores.mean(), standard_error(scores), scores.min(), scores.max(), mine["length"].mean()]
        name = policies.together if policy < 0 else f"agent {policy}"
        table.add_row(name, *(f"{cell:.1f}" if np.isfinite(cell) else "–" for cell in cells))
    counting = scores_that_count(selection, games)
    metadata = {
        "checkpoint": selection.number,
        "steps": policies.steps,
        "hours": policies.hours,
        "score": counting.mean(),
        "error": standard_error(counting),
        "games": len(counting),
        "while_training": while_training,
        "arg_max": not wanted.sample,
        "seed": wanted.seed,
        "max_steps": wanted.max_steps,
        "cut": cut,
        "time": time.strftime("%FT%T%z"),
    }
    writer.write_evaluation(run, games, metadata)
    display.console().print(table)  # once it is kept: whoever reads this may have left
    if cut:
        display.say(
            f"{cut:,} of {len(games):,} games were cut off by --max-steps {wanted.max_steps:,}: scores are of these steps"
        )
    display.say(f"written to {layout.run_file(run)}")


def standard_error(scores: np.ndarray) -> float:
    """Return that of their mean; NaN for one alone."""
    return float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else np.nan


def scores_that_count(selection: Selection, games: np.ndarray) -> np.ndarray:
    """Return the scores that say how good the checkpoint is, float64: of the policy of all agents together; of agents that
    share nothing those of all, where they were played."""
    counts = games["policy"] < 0
    if selection.settings.apart(len(selection.agents)) and not counts.all():
        counts = ~counts
    return games["score"][counts].astype(float)


def film(selection: Selection, policies: Policies) -> None:
    """One episode of the policy of all agents together as mp4 or gif, written under a temporary name."""
    import imageio.v2 as imageio  # only who films pays for the import

    wanted, video = selection.wanted, selection.wanted.video
    assert video is not None  # else there is nothing to film
    environments = make_filmed(selection.settings.env, **selection.settings.env_options)
    network, flat = make_network(selection.settings, environments.spaces)
    flat.data.copy_(torch.from_numpy(policies.vectors[EMA if wanted.policies == "ema" else MEAN]))
    temporary = video.with_name(f".{video.stem}.tmp{video.suffix}")
    generator = torch.Generator().manual_seed(wanted.seed)  # of sampled actions
    seed_global(np.random.SeedSequence(wanted.seed, spawn_key=(0, 0)))
    options: dict[str, Any] = {"macro_block_size": 2} if video.suffix == ".mp4" else {"loop": 0}
    try:
        with cast(Any, imageio.get_writer(temporary, fps=environments.frames_per_second, **options)) as writer:
            steps = min(wanted.max_steps, wanted.video_steps or wanted.max_steps)
            games, lines = Games(environments, game_seeds(wanted.seed, [0]), steps), display.Lines()
            writer.append_data(environments.screen())

            def film_step(_: int) -> None:
                writer.append_data(environments.screen())
                lines.say(f"{games.steps:,} steps of one game filmed")

            (game,) = games.play(network, generator if wanted.sample else None, film_step)
        os.replace(temporary, video)
    finally:
        temporary.unlink(missing_ok=True)
    ending = f", cut off after {game.length:,} steps" if games.cut else ""
    display.say(f"film of one game of the {policies.together} (score {game.score:g}{ending}): {wanted.video}")


if __name__ == "__main__":
    launch.run(main)
