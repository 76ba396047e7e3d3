"""Environments of EnvPool: C++, in threads of its own (Weng et al. 2022). An optional package.

EnvPool returns the last observation of an episode at its end, and would begin the next one at the step after, whose action it
ignores. Here what has ended is begun anew at once, so that a step means what it means elsewhere (`base.Step`).
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from gala_mpi.envs.base import MASK, Environments, Scores, Step
from gala_mpi.envs.gym import NO_ACTION
from gala_mpi.errors import JobError, SettingError

PREFIX = "envpool:"
INSTALL = 'pip install "gala_mpi[envpool]"'
# What its environments are told by flags of this program, or is of no use here.
TAKEN = {
    "num_envs": "--num-envs",
    "seed": "--seed",
    "env_seed": "--seed",
    "num_threads": "a rank's share of the cores",
    "batch_size": "all of them",
    "max_num_players": "1",
    "gym_reset_return_info": "True",
}
# Where `max_episode_steps` cuts episodes off and does nothing else. Of an episode that ends in the step in which it would be
# cut off, EnvPool says that it was cut off; with a limit of one more it says what happened, and the cut is made here.
ONLY_CUT = ("envpool.classic_control", "envpool.mujoco.gym", "envpool.toy_text", "envpool.box2d")
ATARI = "envpool.atari"  # says itself of a game that would be cut off whether it is lost
NO_LIMIT = 2**31 - 1


class EnvPoolEnvironments(Environments):
    """Environments of EnvPool. `envs.spaces` says what becomes of their observations and actions.

    Args:
        task: EnvPool's id.
        num_envs: N.
        threads: how many of them are stepped at the same time.
        kwargs: for `envpool.make`.
        raw: see `envs.spaces`.

    Raises:
        SettingError: EnvPool is not installed or has no such environment, it takes no such keywords, several play it, or no
            network takes its observations or gives its actions.
    """

    def __init__(
        self, task: str, num_envs: int, threads: int = 1, *, kwargs: Mapping[str, Any] | None = None, raw: bool = False
    ):
        # Slow to import
        from gala_mpi.envs.spaces import Actions, Observations, describe, has_mask, with_mask

        self.name, self.num_envs = f"{PREFIX}{task}", num_envs
        self._envpool, self._task, self._given = load(), task, dict(kwargs or {})
        spec = self._spec(self._given)
        self._family, *_ = self._envpool.registration.registry.specs[task]
        self._limit = spec.config.max_episode_steps if self._family in ONLY_CUT else NO_LIMIT
        if self._limit < NO_LIMIT:
            self._given["max_episode_steps"] = self._limit + 1
        self._options = {"num_envs": num_envs, "num_threads": min(threads, num_envs), **self._given}
        self._pool: Any = None  # from the first reset on: its seeds are those that it is made with
        with _without_warnings():
            space, action_space = spec.gymnasium_observation_space, spec.gymnasium_action_space
        self._act = Actions(self.name, action_space, raw)
        actions = None if raw else self._act
        self._mask = MASK if actions and actions.counts and not has_mask(space) and f"info:{MASK}" in spec._state_keys else ""
        if self._mask:
            space = with_mask(space, sum(self._act.counts))
        self._observe = Observations(self.name, space, raw, actions)
        self.spaces = describe(self._observe, self._act)

    def _spec(self, given: Mapping[str, Any]) -> Any:
        """Return EnvPool's description of one environment, and refuse what cannot be told."""
        for name, value in given.items():
            if name in TAKEN:
                raise SettingError(f"--env-kwargs {name}={value}: {self.name} is told so by {TAKEN[name]}; others are expected")
        known = set(self._envpool.make_spec(self._task).config._fields) - set(TAKEN)
        for name, value in given.items():
            if name not in known:
                raise SettingError(
                    f"--env-kwargs {name}={value}: {self.name} takes no {name}; one of these is expected: "
                    f"{', '.join(sorted(known))}"
                )
        try:
            spec = self._envpool.make_spec(self._task, **given)
        except Exception as error:  # pybind11 says in many lines what it was given
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise SettingError(f"--env-kwargs {' '.join(f'{k}={v}' for k, v in given.items())}: {said}") from None
        if spec.config.max_episode_steps < 1:  # which cuts every step off
            raise SettingError(f"--env-kwargs max_episode_steps={spec.config.max_episode_steps}: 1 or more is expected")
        players = spec.config.max_num_players
        if players > 1:
            raise SettingError(f"--env {self.name}: {players} play it; one that is played alone is expected")
        return spec

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        self._scores = Scores(self.num_envs)
        with _without_warnings():
            self._pool = self._envpool.make(self._task, env_type="gymnasium", seed=np.asarray(seeds).tolist(), **self._options)
            return self._to_act_on(self._pick(*self._pool.reset()))

    def send(self, actions: np.ndarray) -> None:
        self._pool.send(self._act(actions))

    def receive(self) -> Step:
        observations, rewards, terminated, truncated, info = self._pool.recv()
        parts = self._pick(observations, info)
        if self._family == ATARI:
            lost = truncated & (info["terminated"] != 0)
            terminated, truncated = terminated | lost, truncated & ~lost
        truncated = truncated | (~terminated & (info["elapsed_step"] >= self._limit))
        over, final = terminated | truncated, None
        if truncated.any():
            final = np.zeros((self.num_envs, *self.spaces.observation_shape), self.spaces.observation_dtype)
            final[truncated] = self._read([part[truncated] for part in parts])
        if over.any():
            self._begin(np.flatnonzero(over), parts)
        with np.errstate(over="ignore"):  # what is infinite then is named where it would be learnt from
            rewards = rewards.astype(np.float32)
        return Step(self._to_act_on(parts), rewards, terminated, truncated, final, self._scores.add(rewards, over))

    def _begin(self, which: np.ndarray, parts: list[np.ndarray]) -> None:
        """Begin new episodes in some environments, and put their first observations into `parts`."""
        for part, first in zip(parts, self._pick(*self._pool.reset(which.astype(np.int32)))):
            part[which] = first

    def _pick(self, observations: Any, info: dict[str, Any]) -> list[np.ndarray]:
        """Return copies of the parts of batched observations, in the dtypes that are declared."""
        if self._mask:
            observations = {"observation": observations, self._mask: info[self._mask]}
        picked = zip(self._observe.parts, self._observe.pick(observations))
        return [np.array(value, part.space.dtype).reshape(-1, *part.space.shape) for part, value in picked]

    def _to_act_on(self, parts: list[np.ndarray]) -> np.ndarray:
        rows = self._read(parts)
        if (helpless := self._observe.helpless(rows)) is not None:
            raise JobError(f"--env {self.name}: environment {helpless} returned {NO_ACTION}")
        return rows

    def _read(self, parts: list[np.ndarray]) -> np.ndarray:
        try:
            return self._observe.read(parts)
        except ValueError as error:
            raise JobError(f"--env {self.name}: an observation of {error}, which is none of its space") from None

    def close(self) -> None:
        self._pool = None  # whose threads end with it


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Make gymnasium's spaces from EnvPool's bounds, which are of more digits than they have, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load() -> ModuleType:
    """Import EnvPool. Raises SettingError where that cannot be done."""
    try:
        import envpool  # pyright: ignore[reportMissingImports]  # optional
    except ImportError as error:
        if getattr(error, "name", None) == "envpool":
            raise SettingError(f"--env {PREFIX}...: EnvPool is not installed; {INSTALL} is expected") from None
        raise SettingError(f"--env {PREFIX}...: EnvPool cannot be imported ({error}); {INSTALL} is expected") from None
    return envpool


def require_task(task: str) -> None:
    """Refuse a name that is none of EnvPool's. Raises SettingError."""
    known = load().list_all_envs()
    if task not in known:
        near = difflib.get_close_matches(task, known, n=3)
        hint = f"did you mean {' or '.join(PREFIX + name for name in near)}?" if near else "for example envpool:CartPole-v1"
        raise SettingError(f"--env {PREFIX}{task}: EnvPool has no such environment; one that it has is expected ({hint})")
