"""Simulators behind one contract: ale-py's own vector environment for Atari, or any gymnasium id.

The contract: a step returns the next observations (of the next game where one ended), real unclipped rewards, and for
every simulator whether its return ends here (`terminated`) or was cut (`truncated`, with the observation that was cut
off). Scores and lengths are of whole games.

Atari is preprocessed as in the GALA authors' code (Mnih et al. 2015): up to 30 no-ops, FIRE after a reset of the game,
frame skip 4 with the maximum of the last two frames, 84×84 grey, 4 frames stacked. A lost life ends the return, not the
game: the next life goes on where the last one ended, without another FIRE.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gala_mpi.errors import SettingError

FRAMES_PER_STEP = 4
NO_OPS = 30


@dataclass(frozen=True)
class Spaces:
    """What one simulator gives and takes."""

    observation_shape: tuple[int, ...]  # images are [channels, height, width]
    image: bool  # uint8 pixels; otherwise float32 numbers
    actions: int | None  # how many discrete actions; None: a box of `action_shape`
    action_shape: tuple[int, ...] = ()

    @property
    def discrete(self) -> bool:
        return self.actions is not None

    @property
    def observation_dtype(self) -> type:
        return np.uint8 if self.image else np.float32


@dataclass(frozen=True)
class Episode:
    """A finished game: which simulator played it, its real score and its length in steps."""

    simulator: int
    score: float
    length: int


@dataclass
class Step:
    """What one action in each of N simulators brought."""

    observations: np.ndarray  # [N, ...], of the next game where one ended
    rewards: np.ndarray  # [N] float32, unclipped
    terminated: np.ndarray  # [N] bool: the return ends (a life or the game was lost)
    truncated: np.ndarray  # [N] bool: the game was cut off
    final_observations: np.ndarray | None  # [N, ...]; rows where `truncated` hold what was cut off, others mean nothing
    episodes: list[Episode] = field(default_factory=list)


class Simulators(Protocol):
    """N simulators stepped together. Those that run in threads of their own (Atari) do so between `begin` and `finish`."""

    num_envs: int
    spaces: Spaces

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """Begin N games from N seeds (int64 [N]); their first observations, [N, ...]."""

    def begin(self, actions: np.ndarray) -> None:
        """Take one action in each (int64 [N], or float32 [N, *action_shape])."""

    def finish(self) -> Step:
        """What came of it."""

    def step(self, actions: np.ndarray) -> Step:
        """Take one action in each, and wait for what comes of it."""
        self.begin(actions)
        return self.finish()

    def close(self) -> None: ...


def resolve(env: str) -> tuple[str, str]:
    """`pong`, `ALE/Pong-v5` and `PongNoFrameskip-v4` → ("atari", "pong"); other gymnasium ids → ("gymnasium", id).

    Raises:
        SettingError: there is no such game.
    """
    games = atari_games()
    if env in games:
        return "atari", env
    # ale-py's ids are of versions 0, 4 and 5; gymnasium's own Blackjack-v1 is not the Atari game.
    match = re.fullmatch(r"(?:ALE/)?([A-Za-z0-9]+?)(?:NoFrameskip|Deterministic)?-v[045]", env)
    by_plain_name = {game.replace("_", ""): game for game in games}
    if match and match[1].lower() in by_plain_name:
        return "atari", by_plain_name[match[1].lower()]
    import gymnasium  # slow to import, and not needed to recognise an Atari game

    if env in gymnasium.registry:
        return "gymnasium", env
    near = difflib.get_close_matches(env, [*games, *gymnasium.registry], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "for example pong, ms_pacman, ALE/Pong-v5 or CartPole-v1"
    raise SettingError(f"--env {env}: no such game; an Atari game or a gymnasium id is expected ({hint})")


def atari_games() -> list[str]:
    """The games whose ROMs ale-py ships, in its snake_case."""
    from ale_py import roms

    return roms.get_all_rom_ids()


def make(env: str, num_envs: int, *, threads: int = 1, sticky: float = 0.0) -> Simulators:
    """`num_envs` simulators of `env` (see `resolve`).

    Args:
        threads: how many emulators run at a time (Atari).
        sticky: probability that an emulator repeats the last action, per frame (Machado et al. 2018; Atari).
    """
    kind, name = resolve(env)
    return AtariSimulators(name, num_envs, threads, sticky) if kind == "atari" else GymSimulators(name, num_envs)


def make_filmed(env: str, sticky: float = 0.0) -> FilmedAtari | FilmedGym:
    """One simulator of `env` that can also show its screen."""
    kind, name = resolve(env)
    return FilmedAtari(name, sticky) if kind == "atari" else FilmedGym(name)


class _Scores:
    """Running score and length of each simulator's game."""

    def __init__(self, num_envs: int):
        self._scores = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)

    def add(self, rewards: np.ndarray, over: np.ndarray) -> list[Episode]:
        """Count one step; the games that it ended (`over`, bool [N])."""
        self._scores += rewards
        self._lengths += 1
        if not over.any():
            return []
        episodes = [Episode(int(i), float(self._scores[i]), int(self._lengths[i])) for i in np.flatnonzero(over)]
        self._scores[over] = 0
        self._lengths[over] = 0
        return episodes


class AtariSimulators(Simulators):
    """Atari games in ale-py's vector environment (C++ threads)."""

    def __init__(self, game: str, num_envs: int, threads: int = 1, sticky: float = 0.0, **view: Any):
        """`view` overrides how the screen is shown (`img_height`, `grayscale`, ...), not how the game is played."""
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        self._envs = AtariVectorEnv(
            game,
            num_envs,
            num_threads=min(threads, num_envs),
            repeat_action_probability=sticky,
            autoreset_mode=AutoresetMode.SAME_STEP,
            noop_max=NO_OPS,
            frameskip=FRAMES_PER_STEP,
            use_fire_reset=True,
            reward_clipping=False,
            # Not episodic_life: that one restarts the whole game at every lost life.
            life_loss_info=True,
            **view,
        )
        self.num_envs = num_envs
        self.spaces = Spaces(self._envs.single_observation_space.shape, True, int(self._envs.single_action_space.n))

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        observations, info = self._envs.reset(seed=np.asarray(seeds))
        self._scores = _Scores(self.num_envs)
        self._frames = info["episode_frame_number"].copy()
        return observations

    def begin(self, actions: np.ndarray) -> None:
        self._envs.send(actions)

    def finish(self) -> Step:
        observations, rewards, terminated, truncated, info = self._envs.recv()
        # `terminated` is also set at a lost life, and `lives` is already the next game's. The end of a game shows only by
        # its frame counter, which does not go on from where it was.
        frames = info["episode_frame_number"]
        over = (frames <= self._frames) | (frames > self._frames + FRAMES_PER_STEP)
        self._frames = frames.copy()
        rewards = rewards.astype(np.float32)
        episodes = self._scores.add(rewards, over)
        return Step(observations, rewards, terminated, truncated, info.get("final_obs"), episodes)

    def close(self) -> None:
        self._envs.close()


class GymSimulators(Simulators):
    """Any gymnasium id, in this process. Images are uint8 boxes of rank 3, channels first or last; the rest is flattened."""

    def __init__(self, name: str, num_envs: int, **options: Any):
        import gymnasium
        from gymnasium.spaces import Box, Discrete
        from gymnasium.vector import AutoresetMode

        self._envs = gymnasium.make_vec(
            name, num_envs, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}, **options
        )
        self.num_envs = num_envs
        observation, action = self._envs.single_observation_space, self._envs.single_action_space
        if not isinstance(observation, Box):
            raise SettingError(f"--env {name}: observations are {observation}; a Box is expected")
        image = observation.dtype == np.uint8 and len(observation.shape) == 3
        self._channels_last = image and observation.shape[-1] < observation.shape[0]
        shape = observation.shape if image else (math.prod(observation.shape),)
        if self._channels_last:
            shape = shape[-1:] + shape[:-1]
        if isinstance(action, Discrete):
            self.spaces = Spaces(shape, image, int(action.n))
            self._first_action = int(action.start)
        elif isinstance(action, Box):
            self.spaces = Spaces(shape, image, None, action.shape)
            self._low, self._high = action.low, action.high
        else:
            raise SettingError(f"--env {name}: actions are {action}; Discrete or Box is expected")

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        observations, _ = self._envs.reset(seed=[int(seed) for seed in seeds])
        self._scores = _Scores(self.num_envs)
        return self._arrange(observations)

    def begin(self, actions: np.ndarray) -> None:
        self._actions = actions + self._first_action if self.spaces.discrete else np.clip(actions, self._low, self._high)

    def finish(self) -> Step:
        observations, rewards, terminated, truncated, info = self._envs.step(self._actions)
        truncated = truncated & ~terminated
        rewards = rewards.astype(np.float32)
        episodes = self._scores.add(rewards, terminated | truncated)
        observations = self._arrange(observations)
        final = None
        if truncated.any():
            final = np.zeros_like(observations)
            for i in np.flatnonzero(truncated):
                final[i] = self._arrange(info["final_obs"][i][None])[0]
        return Step(observations, rewards, terminated, truncated, final, episodes)

    def _arrange(self, observations: np.ndarray) -> np.ndarray:
        if self._channels_last:
            observations = np.moveaxis(observations, -1, 1)
        rows = observations.reshape(-1, *self.spaces.observation_shape)
        return rows.astype(self.spaces.observation_dtype, copy=True)

    def close(self) -> None:
        self._envs.close()


class FilmedAtari(AtariSimulators):
    """One game with its colour screen, which a twin shows that plays the same seed and the same actions."""

    frames_per_second = 60 / FRAMES_PER_STEP

    def __init__(self, game: str, sticky: float = 0.0):
        super().__init__(game, 1, sticky=sticky)
        self._twin = AtariSimulators(game, 1, sticky=sticky, grayscale=False, stack_num=1, img_height=210, img_width=160)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        self._screen = self._twin.reset(seeds)
        return super().reset(seeds)

    def step(self, actions: np.ndarray) -> Step:
        self._screen = self._twin.step(actions).observations
        return super().step(actions)

    def screen(self) -> np.ndarray:
        """uint8 [420, 640, 3]: the console's pixels are twice as wide as high."""
        return self._screen[0, 0].repeat(2, axis=0).repeat(4, axis=1)

    def close(self) -> None:
        self._twin.close()
        super().close()


class FilmedGym(GymSimulators):
    """One gymnasium environment with its rendered screen."""

    def __init__(self, name: str):
        try:
            super().__init__(name, 1, render_mode="rgb_array")
            self._envs.envs[0].reset(seed=0)
            self.screen()
        except Exception as error:  # a renderer that is not installed, say
            raise SettingError(f"--video: {name} cannot be filmed ({error})") from None
        self.frames_per_second = self._envs.envs[0].metadata.get("render_fps", 30)

    def screen(self) -> np.ndarray:
        """uint8 [height, width, 3]."""
        return self._envs.envs[0].render()
