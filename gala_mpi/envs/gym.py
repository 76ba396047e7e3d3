"""Environments of gymnasium, in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, cast

import numpy as np

from gala_mpi.envs.base import MASK, Environments, Scores, Step
from gala_mpi.envs.modules import same_directory
from gala_mpi.errors import JobError

NO_ACTION = "a mask that allows no action; one or more is expected"
RETURNED = {"reset": ("observation", "info"), "step": ("observation", "reward", "terminated", "truncated", "info")}


class GymEnvironments(Environments):
    """Environments of any gymnasium id. `envs.spaces` says what becomes of their observations and actions.

    Args:
        name: the gymnasium id.
        num_envs: N.
        kwargs: for `gymnasium.make`: `max_episode_steps`, `render_mode`, and what the environment itself is told.
        wrappers: around each environment, the innermost first: functions from an environment to one.
        raw: see `envs.spaces`.
        first: what messages call the first environment; those after it are counted on.

    Raises:
        SettingError: no network takes its observations or gives its actions.
    """

    def __init__(
        self,
        name: str,
        num_envs: int,
        *,
        kwargs: Mapping[str, Any] | None = None,
        wrappers: Sequence[Callable[[Any], Any]] = (),
        raw: bool = False,
        first: int = 0,
    ):
        import gymnasium  # slow to import

        self.name, self.num_envs, self._first = name, num_envs, first
        self.envs: list[Any] = []
        try:
            for _ in range(num_envs):
                with same_directory():
                    self.envs.append(wrapped(gymnasium.make(name, **kwargs or {}), wrappers))
            self._look(raw)
        except BaseException:
            with suppress(Exception):  # what one raises that was never begun would hide why
                self.close()  # an environment that has started processes would keep this one from its end
            raise

    def _look(self, raw: bool) -> None:
        """Find out what the environments show and take. Raises as the constructor does."""
        # Slow to import
        from gala_mpi.envs.spaces import Actions, Observations, describe, has_mask, with_mask

        name, num_envs, self._steps = self.name, self.num_envs, 0  # steps since the last reset by seeds
        self._act = Actions(name, self.envs[0].action_space, raw)
        space, actions = self.envs[0].observation_space, None if raw else self._act
        self._observe = Observations(name, space, raw, actions)
        # Whether infos have masks is nowhere declared: look. At all, of which one may count how often it is begun.
        may = actions is not None and actions.counts and not has_mask(space)
        self._maskable = bool(may)  # by infos
        infos = [self._call(i, "reset", seed=0)[1] for i in range(num_envs) if may]
        self._mask = MASK if any(MASK in info for info in infos) else ""
        if self._mask:
            self._observe = Observations(name, with_mask(space, sum(self._act.counts)), raw, actions)
        self.spaces = describe(self._observe, self._act)
        self._check_equal()
        # What an environment returns is copied here at once: it may write its next observation over it.
        self._room = [np.zeros((num_envs, *part.space.shape), part.space.dtype) for part in self._observe.parts]
        self._places = [
            (part.keys, part.space.shape, room, room.dtype.kind in "iu") for part, room in zip(self._observe.parts, self._room)
        ]

    @property
    def advice(self) -> Sequence[str]:
        return self._observe.advice

    def _check_equal(self) -> None:
        """Refuse environments that have declared other spaces than the first one."""
        for i, env in enumerate(self.envs):
            for kind in ("observation_space", "action_space"):
                one, first = getattr(env, kind), getattr(self.envs[0], kind)
                if one != first:
                    who, other = f"environment {self._first + i}", f"environment {self._first}"
                    raise JobError(f"--env {self.name}: {who} has the {kind} {one}, {other} {first}")

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        self._scores, self._steps = Scores(self.num_envs), 0
        for i, seed in enumerate(seeds.tolist()):
            self._keep(i, *self._call(i, "reset", seed=seed))
        return self._to_act_on()

    def send(self, actions: np.ndarray) -> None:
        self._actions = self._act(actions)

    def receive(self) -> Step:
        self._steps += 1
        rewards, terminated, truncated = np.zeros(self.num_envs), *np.zeros((2, self.num_envs), bool)
        final = None
        for i, action in enumerate(self._actions):
            observation, reward, over, cut_off, info = self._call(i, "step", action)
            rewards[i] = reward if type(reward) is float else self._number(i, reward)
            if over is None or cut_off is None:  # neither of which is false
                raise self._error(i, f"terminated {over}, truncated {cut_off}; truth values are expected")
            if over:
                terminated[i] = True
            elif cut_off:
                truncated[i] = True
                if final is None:
                    final = np.zeros((self.num_envs, *self.spaces.observation_shape), self.spaces.observation_dtype)
                self._keep(i, observation, info)
                final[i] = self._read(slice(i, i + 1))[0]
            if over or cut_off:
                observation, info = self._call(i, "reset")
            self._keep(i, observation, info)
        with np.errstate(over="ignore"):  # what is infinite then is named where it would be learnt from
            rewards = rewards.astype(np.float32)
        episodes = self._scores.add(rewards, terminated | truncated)
        return Step(self._to_act_on(), rewards, terminated, truncated, final, episodes)

    def _call(self, i: int, method: str, *arguments: Any, **named: Any) -> tuple:
        """Call a method of environment `i`, and say whose it is with whatever it raises.

        Raises:
            RuntimeError: it has called sys.exit, which would end this rank alone, or as if all were well.
            JobError: it does not return what gymnasium's do.
        """
        try:
            returned = getattr(self.envs[i], method)(*arguments, **named)
        except SystemExit as end:
            raise RuntimeError(f"{self._whose(i)} has called sys.exit({end.code}) at its step {self._steps}") from end
        except Exception as error:
            error.add_note(f"{self._whose(i)} has raised this at its step {self._steps}")
            raise
        if not isinstance(returned, tuple) or len(returned) != len(RETURNED[method]):
            shown = f"{len(returned)} values" if isinstance(returned, tuple) else type(returned).__name__
            raise JobError(f"{self._whose(i)}: its {method} returned {shown}; ({', '.join(RETURNED[method])}) is expected")
        return returned

    def _whose(self, i: int) -> str:
        return f"environment {self._first + i} of --env {self.name}"

    def _number(self, i: int, reward: Any) -> float:
        """Return a reward, a number or an array of one, as a float."""
        try:
            if isinstance(reward, (str, bytes)):
                raise TypeError  # float would read it
            return float(reward.item() if isinstance(reward, np.ndarray) else reward)
        except OverflowError:  # of Python's integers
            return math.inf if cast(int, reward) > 0 else -math.inf
        except (TypeError, ValueError):
            one = np.asarray(reward)
            if one.size == 1 and one.dtype.kind in "fiub":
                return float(one.item())
        raise self._error(i, f"a reward of {' '.join(repr(reward).split())[:80]}; a number is expected")

    def _keep(self, i: int, observation: Any, info: dict[str, Any]) -> None:
        """Copy what environment `i` has returned, at its first step compared with all that it has declared."""
        if self._mask:
            if self._mask not in info:
                raise self._error(i, f"no {self._mask} in its info, which it had at its first reset")
            observation = {"observation": observation, self._mask: info[self._mask]}
        elif self._steps == 1 and self._maskable and MASK in info:
            raise self._error(i, f"an {MASK} in its info, which it had not at its first reset; both or none are expected")
        if self._steps <= 1 and (complaint := self._observe.complaint(observation)):
            raise self._error(i, complaint)
        try:
            for keys, shape, room, whole in self._places:
                value = observation
                for key in keys:
                    value = value[key]
                if getattr(value, "shape", None) != shape and np.shape(value) != shape:
                    raise ValueError  # or numpy would broadcast it
                if whole and np.asarray(value).dtype != room.dtype and self._observe.complaint(observation):
                    raise ValueError  # or numpy would cut its digits off
                room[i] = value
        except (KeyError, IndexError, TypeError, ValueError, OverflowError):
            raise self._error(i, self._observe.complaint(observation) or "an observation that cannot be read") from None

    def _to_act_on(self) -> np.ndarray:
        """Return a new array of the observations that are kept of all environments, [N, *observation_shape]."""
        rows = self._read(slice(0, self.num_envs))
        if (helpless := self._observe.helpless(rows)) is not None:
            raise self._error(helpless, NO_ACTION)
        return rows

    def _read(self, rows: slice) -> np.ndarray:
        """Return a new array of the observations that are kept of some environments, [n, *observation_shape]."""
        try:
            return self._observe.read([room[rows] for room in self._room])
        except ValueError as error:
            if rows.stop - rows.start == 1:
                raise self._error(rows.start, f"an observation of {error}, which is none of its space") from None
            for i in range(rows.start, rows.stop):
                self._read(slice(i, i + 1))  # which names it
            raise

    def _error(self, i: int, what: str) -> JobError:
        return JobError(f"--env {self.name}: environment {self._first + i} returned at its step {self._steps} {what}")

    def close(self) -> None:
        with ExitStack() as all_of_them:  # even if one raises something
            for env in self.envs:
                all_of_them.callback(env.close)


def wrapped(env: Any, wrappers: Sequence[Callable[[Any], Any]]) -> Any:
    """Wrap one environment, the first wrapper innermost."""
    for wrap in wrappers:
        env = wrap(env)
    return env
