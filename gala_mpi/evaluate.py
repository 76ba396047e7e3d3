"""Play a run's policies, every agent's and the averaged one, and say how good they are.

    python -m gala_mpi.evaluate runs/pong-gossip-...
    mpirun -n 8 python -m gala_mpi.evaluate runs/pong-gossip-... --episodes 100 --video pong.mp4

Episodes start as those of the run did (Atari: with up to 30 no-ops); actions are the most probable ones unless --sample. Under
mpirun the episodes are dealt over the ranks. The table goes to the terminal and every episode to the run's run.h5.
"""

from __future__ import annotations

from gala_mpi.job import launch

launch.set_environment()  # before numpy, torch and MPI are imported

import dataclasses
import os
import time
from collections.abc import Callable, Iterable
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
from gala_mpi.envs.base import Environments, Episode
from gala_mpi.envs.envpool import PREFIX
from gala_mpi.envs.film import make_filmed
from gala_mpi.envs.modules import same_directory
from gala_mpi.envs.streams import seed_global
from gala_mpi.errors import JobError, SettingError
from gala_mpi.flat import Flat
from gala_mpi.mpi.world import World
from gala_mpi.networks.policy import Network, Precision
from gala_mpi.run import checkpoints, layout, reader, writer

MEAN = -1  # the policy with all agents' parameters averaged, or with the one vector that they share
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
    """newest, best (by training score) or a checkpoint's number."""
    policies: Literal["all", "mean"] = "all"
    """all = every agent's policy and the one with their averaged parameters; mean = the averaged one alone.
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
    env: Optional[str] = None
    """The run's environment as MODULE:ID, where the run does not say which module registers it, or the module has moved."""


@dataclass(frozen=True)
class Selection:
    """What all ranks agree on: what is asked, the run's settings, the checkpoint and whose policies it holds."""

    wanted: Evaluation
    settings: Config
    number: int
    agents: list[int]


@dataclass(frozen=True)
class Policies:
    """What plays.

    Attributes:
        vectors: the parameters of every policy, float32 [P], by agent, and last that of all agents together (MEAN).
        together: what the last one is.
    """

    vectors: dict[int, np.ndarray]
    together: str


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


def choose(arguments: list[str]) -> Selection:
    """Parse and check. Raises SettingError."""
    wanted = parse(arguments)
    check(wanted)
    settings = named_anew(reader.read_config(wanted.run, "run directory"), wanted.env)
    named = {"newest": checkpoints.newest, "best": checkpoints.best_sound}.get(wanted.checkpoint)
    number = named(wanted.run) if named else int(wanted.checkpoint)
    available = checkpoints.complete(wanted.run)
    if number not in available:
        numbers = ", ".join(map(str, available)) or "none is complete yet"
        raise SettingError(f"--checkpoint {wanted.checkpoint}: a complete checkpoint of {wanted.run} is expected ({numbers})")
    environments = start_once(settings, filmed=wanted.video is not None)
    selection = Selection(wanted, settings, number, checkpoints.ranks(wanted.run, number))
    try:
        policies = load(selection)
    except JobError as error:
        raise SettingError(f"--checkpoint {wanted.checkpoint}: {error}") from None
    saved, needed = len(next(iter(policies.vectors.values()))), len(make_network(settings, environments)[1])
    if saved != needed:
        raise SettingError(
            f"--env {settings.env}: its observations and actions take a network of {needed:,} parameters, the run's has "
            f"{saved:,}; the environment as it was when the run was started is expected"
        )
    absolute = {name: path and path.absolute() for name, path in (("run", wanted.run), ("video", wanted.video))}
    return dataclasses.replace(selection, wanted=dataclasses.replace(wanted, **absolute))  # an environment may change directory


def named_anew(settings: Config, env: str | None) -> Config:
    """Return a run's settings with `env` as the name of its environment. Raises SettingError where it names another one."""
    if env is None:
        return settings
    require(registry.bare(env) == registry.bare(settings.env), "--env", env, f"MODULE:{registry.bare(settings.env)}")
    return dataclasses.replace(settings, env=env)


def start_once(settings: Config, filmed: bool) -> Environments:
    """Make the run's environment, close it and return it. Raises SettingError where that cannot be done."""
    try:
        registry.resolve(settings.env)
    except SettingError as error:
        if settings.env.startswith(PREFIX):
            raise
        way_out = f"--env MODULE:{registry.bare(settings.env)} names a module that registers it"
        raise SettingError(f"{error}; the run plays it: {way_out}") from None
    environments = registry.try_out(settings.env, workers=min(settings.env_workers, 1), **settings.env_options)
    if filmed:
        with same_directory():
            make_filmed(settings.env, **settings.env_options).close()
    return environments


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
    require_whole("--seed", wanted.seed, 0)
    known = wanted.checkpoint in ("newest", "best") or (wanted.checkpoint.isascii() and wanted.checkpoint.isdigit())
    require(known, "--checkpoint", wanted.checkpoint, "newest, best or a checkpoint's number")
    require_file("--video", wanted.video, ".mp4", ".gif")


def load(selection: Selection) -> Policies:
    """Read every policy that plays, before the first episode: a run that goes on deletes them.

    Raises:
        JobError: names the file that cannot be read.
    """
    vectors: dict[int, np.ndarray] = {}
    total: np.ndarray = np.zeros(())
    pushes: list[int | None] = []
    for agent in selection.agents:
        vector, count = _load(selection, agent)
        total = total + vector.astype(np.float64)
        pushes.append(count)
        if selection.wanted.policies == "all":
            vectors[agent] = vector
    newest = checkpoints.newest_vector(pushes)
    if newest is not None:
        return Policies({MEAN: _load(selection, selection.agents[newest])[0]}, "shared vector")
    return Policies(vectors | {MEAN: (total / len(selection.agents)).astype(np.float32)}, "mean of all agents")


def _load(selection: Selection, agent: int) -> tuple[np.ndarray, int | None]:
    """Return the parameters in an agent's file, and how many steps had gone into them where they are those of all."""
    run, number = selection.wanted.run, selection.number
    try:
        state = checkpoints.load(run, number, agent)
    except Exception as error:  # h5py raises many kinds
        raise JobError(f"{layout.checkpoint_file(run, number, agent)} is damaged or deleted ({error})") from None
    return state.learner["parameters"], state.pushes


class Played:
    """How many games have been played, shown by rank 0: as a bar on a terminal, else as a line now and then.

    A context manager around the games of a rank, which it leaves when those of all are played. Collective.

    Args:
        games: of all ranks.
    """

    def __init__(self, world: World, games: int):
        self._world, self._games, self._played = world, games, 0
        self._words: list[Any] = []  # to rank 0, on their way: one of each game
        self._began, self._lines = time.monotonic(), display.Lines()
        console = display.console()
        self._bar = RichProgress(console=console, transient=True, disable=not (world.root and console.is_terminal))
        self._task = self._bar.add_task("playing", total=games)

    def __enter__(self) -> Played:
        self._bar.start()
        return self

    def count(self, games: int) -> None:
        """Count `games` more of this rank, and show how many all have played. To be called often."""
        if self._world.root:
            self._played += games
            self._show()
        else:
            self._words += [self._world.comm.isend(None, dest=0, tag=TAG) for _ in range(games)]

    def _show(self) -> None:
        while self._world.comm.iprobe(tag=TAG):
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
        if kind is None:
            self._world.wait()  # rank 0 has heard every word then
            for word in self._words:
                word.wait()


def play_my_share(
    selection: Selection, policies: dict[int, np.ndarray], world: World, played: Played
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
    network, flat = make_network(settings, environments)
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


def make_network(settings: Config, environments: Environments) -> tuple[Network, Flat]:
    """A network of the run's kind, to be filled with parameters. On the CPU: a few episodes need no more."""
    name, precision = cast(str, settings.network), cast(Precision, settings.precision)  # settled by `job.prepare`
    network = Network(name, environments.spaces, precision, **settings.statistics)
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stubs lack memory_format
    return network, Flat(network)


def game_seeds(seed: int, games: Iterable[int]) -> np.ndarray:
    """One seed per episode, int64: the same for every policy and any number of ranks."""
    sequences = (np.random.SeedSequence(seed, spawn_key=(game,)) for game in games)
    return np.array([sequence.generate_state(1)[0] >> 1 for sequence in sequences], np.int64)


class Games:
    """One episode in each of N environments.

    Args:
        seeds: of the episodes, int64 [N].
        max_steps: after which an episode is cut off.

    Attributes:
        steps: that have been taken in each.
        cut: how many episodes were cut off.
    """

    def __init__(self, environments: Environments, seeds: np.ndarray, max_steps: int):
        self._environments, self._max_steps = environments, max_steps
        self._observations, self.steps, self.cut = environments.reset(seeds), 0, 0
        self._scores = np.zeros(environments.num_envs)  # so far
        self._played: dict[int, Episode] = {}  # by the environment

    @torch.no_grad()
    def play(
        self, network: Network, generator: torch.Generator | None, count: Callable[[int], None] = lambda games: None
    ) -> list[Episode]:
        """Play them to their ends; return the first episode of each environment, in the order of the seeds.

        Args:
            generator: what actions are drawn from; None: the most probable ones are taken.
            count: told of the number of games that have ended, at every step.

        Raises:
            JobError: an environment gave a number that is not finite, whose score nobody could trust.
        """
        environments = self._environments
        while len(self._played) < environments.num_envs:
            self._require_finite("an observation", self._observations)
            policy, _ = network(torch.from_numpy(self._observations))
            step = environments.step((policy.sample(generator) if generator else policy.mode).numpy())
            self._observations, self.steps, before = step.observations, self.steps + 1, len(self._played)
            self._require_finite("a reward", step.rewards)
            self._scores += step.rewards
            for episode in step.episodes:
                self._played.setdefault(episode.environment, episode)
            if self.steps == self._max_steps:
                self._cut_off()
            count(len(self._played) - before)
        return [self._played[i] for i in range(environments.num_envs)]

    def _cut_off(self) -> None:
        for i in set(range(self._environments.num_envs)) - self._played.keys():
            self._played[i] = Episode(i, float(self._scores[i]), self.steps)
            self.cut += 1

    def _require_finite(self, what: str, rows: np.ndarray) -> None:
        """Refuse to go on with [N, ...] of environments that play, of which not all are finite."""
        if rows.dtype.kind == "f" and not np.isfinite(rows).all():
            for i in set(range(len(rows))) - self._played.keys():
                if not np.isfinite(rows[i]).all():
                    value = rows[i][~np.isfinite(rows[i])].flat[0] if rows[i].ndim else rows[i]
                    raise JobError(
                        f"environment {i} gave {what} of {value} at its step {self.steps}: its score would mean nothing"
                    )


def report(selection: Selection, policies: Policies, games: np.ndarray, cut: int) -> None:
    """Add the episodes, of which so many were cut off, to run.h5 and print the table."""
    wanted, run = selection.wanted, selection.wanted.run
    how = "sampled actions" if wanted.sample else "most probable actions"
    table = Table(title=f"{selection.settings.env}, checkpoint {selection.number}, {wanted.episodes} games a policy, {how}")
    for heading in ("policy", "mean", "± standard error", "lowest", "highest", "mean length (steps)"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for policy in policies.vectors:
        mine = games[games["policy"] == policy]
        scores = mine["score"].astype(float)
        error = scores.std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else np.nan
        cells = [scores.mean(), error, scores.min(), scores.max(), mine["length"].mean()]
        name = policies.together if policy == MEAN else f"agent {policy}"
        table.add_row(name, *(f"{cell:.1f}" if np.isfinite(cell) else "–" for cell in cells))
    metadata = {
        "checkpoint": selection.number,
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


def film(selection: Selection, policies: Policies) -> None:
    """One episode of the policy of all agents together as mp4 or gif, written under a temporary name."""
    import imageio.v2 as imageio  # only who films pays for the import

    wanted, video = selection.wanted, selection.wanted.video
    assert video is not None  # else there is nothing to film
    environments = make_filmed(selection.settings.env, **selection.settings.env_options)
    network, flat = make_network(selection.settings, environments)
    flat.data.copy_(torch.from_numpy(policies.vectors[MEAN]))
    temporary = video.with_name(f".{video.stem}.tmp{video.suffix}")
    generator = torch.Generator().manual_seed(wanted.seed)  # of sampled actions
    seed_global(np.random.SeedSequence(wanted.seed, spawn_key=(0, 0)))
    options: dict[str, Any] = {"macro_block_size": 2} if video.suffix == ".mp4" else {"loop": 0}
    try:
        with cast(Any, imageio.get_writer(temporary, fps=environments.frames_per_second, **options)) as writer:
            games, lines = Games(environments, game_seeds(wanted.seed, [0]), wanted.max_steps), display.Lines()
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
