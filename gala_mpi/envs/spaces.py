"""From the spaces of gymnasium to what a network takes and gives.

`Observations` brings observations of a space to arrays [N, *shape], `Actions` brings a network's actions to what an environment
takes. docs/environments.md has the table of what becomes of which space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces as gym

from gala_mpi.envs.base import MASK, Part, Spaces
from gala_mpi.errors import SettingError

BOUNDLESS = 1e9  # a bound of this size or more is there because a dtype has an end, and nothing is scaled by it
MOST_NUMBERS = 1_000_000  # in one observation that is no image, or for one action
MOST_PIXELS = 4_000_000  # in one image, or stack of images
SMALLEST_SIDE = 3  # pixels: what has fewer on a side leaves nothing to a convolution, and is no image

Keys = tuple[str | int, ...]  # the way to a part of nested observations


def shown(space: gym.Space) -> str:
    """Return a space as text, in one line that is not too long."""
    text = " ".join(str(space).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


class Observations:
    """What becomes of the observations of one space.

    Args:
        env: its environment's name, for messages.
        space: of one environment's observations.
        raw: as runs before there was a choice: bytes that are no image of rank 3 are not scaled, and all but bytes of rank 3
            are flattened.
        actions: to which masks belong; None: masks are observations like others.

    Attributes:
        mask: the reader of the mask that says which actions may be taken, the last of `parts`; None: there is none.
        parts: the readers of the spaces that hold no others, in the order in which they are packed.
        left_out: the names of texts, which no network reads.
        shape, dtype, image, scale, image_shape: see `Spaces`.

    Raises:
        SettingError: no network takes such observations; the message names the way out.
    """

    def __init__(self, env: str, space: gym.Space, raw: bool = False, actions: Actions | None = None):
        self._env, self._space, self._raw = env, space, raw
        self.left_out: list[str] = []
        self._notes: dict[str, None] = {}  # in the order in which they were made
        self.mask = self._mask_of(space, actions) if actions and actions.counts and has_mask(space) else None
        self.parts: list[_Reader] = list(self._find(space, ()))
        if not self.parts:
            raise self._refused(space, "a network reads none of it; a wrapper that turns it into numbers is expected")
        first = self.parts[0]
        self.image = len(self.parts) == 1 and isinstance(first, Pixels) and self.mask is None
        self.image_shape: tuple[int, int, int] | None = None
        for part in self.parts:
            if isinstance(part, Pixels) and part.size > MOST_PIXELS:
                raise self._refused(space, f"{part.size:,} pixels; {MOST_PIXELS:,} at most (ResizeObservation) are expected")
        if isinstance(first, Pixels) and self.image:
            self.shape, self.dtype, self.scale = first.planes, first.dtype, first.scale
        else:
            self._pack()

    def _pack(self) -> None:
        """Make one vector of all parts: first the image, then the other numbers."""
        pictures = [part for part in self.parts if isinstance(part, Pixels)]
        if pictures:
            height, width = max((part.planes[1:] for part in pictures), key=math.prod)
            together = [part for part in pictures if part.planes[1:] == (height, width)]
            self.image_shape = sum(part.planes[0] for part in together), height, width
            others = [part.flattened() if isinstance(part, Pixels) else part for part in self.parts if part not in together]
            self.parts = [*map(Packed, together), *others]
        self.shape, self.dtype, self.scale = (sum(part.size for part in self.parts),), np.dtype(np.float32), 1.0
        numbers = self.shape[0] - math.prod(self.image_shape or (0,))
        if numbers > MOST_NUMBERS:
            raise self._refused(self._space, f"they are {numbers:,} numbers; {MOST_NUMBERS:,} at most are expected")
        if self.mask:
            self.parts.append(self.mask)
            self.shape = (self.shape[0] + self.mask.size,)

    def _mask_of(self, space: gym.Space, actions: Actions) -> Mask:
        mask = cast(gym.Dict, space)[MASK]
        expected = sum(actions.counts)
        if not isinstance(mask, (gym.Box, gym.MultiBinary)) or math.prod(mask.shape) != expected:
            raise self._refused(mask, f"an {MASK} of {expected} numbers, one for each action, is expected")
        return Mask(mask, (MASK,), actions.counts)

    @property
    def layout(self) -> tuple[Part, ...]:
        """Where the parts of a nested space lie in a packed observation; empty where there is nothing to say."""
        if isinstance(self._space, (gym.Dict, gym.Tuple)) and not self.image:
            return tuple(Part(part.name, shown(part.space), part.size) for part in self.parts)
        return ()

    @property
    def advice(self) -> list[str]:
        """What a user should know before the run, in one line each."""
        text = [f"--env {self._env}: {', '.join(self.left_out)} of its observations: text, which is left out"]
        return (text if self.left_out else []) + [f"--env {self._env}: {note}" for note in self._notes]

    def pick(self, observation: Any) -> list[Any]:
        """Return the values of the parts of an observation, or of batched observations, in the order of `parts`."""
        return [_follow(observation, part.keys) for part in self.parts]

    def read(self, values: Sequence[np.ndarray]) -> np.ndarray:
        """Bring N observations to what a network takes.

        Args:
            values: of each part, [N, *shape of its space].

        Returns:
            A new array, [N, *shape] of `dtype`.

        Raises:
            ValueError: a value is none of its space's.
        """
        if len(self.parts) == 1:
            return self.parts[0].read(values[0])
        return np.concatenate([part.read(value) for part, value in zip(self.parts, values)], axis=1)

    def helpless(self, rows: np.ndarray) -> int | None:
        """Return the first of N observations, as `read` gives them, whose mask allows no action; None: there is none."""
        if self.mask is None:
            return None
        helpless = self.mask.helpless(rows[:, -self.mask.size :])
        return int(helpless.argmax()) if helpless.any() else None

    def complaint(self, observation: Any) -> str:
        """Return what is wrong with one observation, beside what the space says; empty: nothing is.

        What is not as declared, but can be taken, is noted in `advice`.
        """
        for part in self.parts:
            try:
                returned = _follow(observation, part.keys)
                value = np.asarray(returned)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                return f"no {part.name} as in {shown(self._space)} ({type(error).__name__}: {error})"
            space = part.space
            if value.shape != space.shape:
                return f"{part.name} of shape {value.shape}; {space.shape} is declared ({shown(space)})"
            if not np.can_cast(value.dtype, cast(np.dtype, space.dtype), "same_kind"):
                return f"{part.name} of dtype {value.dtype}; {space.dtype} is declared ({shown(space)})"
            whole = value.astype(space.dtype)
            if np.dtype(space.dtype).kind in "iu" and (whole != value).any():
                return f"{part.name} of {value[whole != value][0]}; {shown(space)} is declared"
            if value.dtype != space.dtype and isinstance(returned, np.ndarray) and part is not self.mask:
                self._notes[f"{part.name} of dtype {value.dtype}; {space.dtype} is declared, which it is converted to"] = None
            try:
                part.read(whole[None])
            except ValueError as error:
                return f"{part.name} of {error}; {shown(space)} is declared"
        return ""

    def _find(self, space: gym.Space, keys: Keys) -> Iterator[_Reader]:
        """Yield a reader for each space inside that holds no others."""
        if isinstance(space, gym.Dict):
            for key, inside in space.spaces.items():
                if not (self.mask and (*keys, key) == self.mask.keys):
                    yield from self._find(inside, (*keys, key))
        elif isinstance(space, gym.Tuple):
            for index, inside in enumerate(space.spaces):
                yield from self._find(inside, (*keys, index))
        elif isinstance(space, gym.Text) or getattr(space.dtype, "kind", "") == "U":  # spaces of strings of others, too
            self.left_out += [".".join(map(str, keys))] if keys else []
        elif isinstance(space, (gym.Discrete, gym.MultiDiscrete)):
            yield OneHot(space, keys)
        elif isinstance(space, gym.Box):
            self._check(space)
            yield Pixels(space, keys, self._raw) if is_image(space, self._raw) else Numbers(space, keys, self._raw)
        elif isinstance(space, gym.MultiBinary):
            self._check(space)
            yield Numbers(space, keys, raw=True)
        else:
            raise self._refused(
                space, "a wrapper that gives Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple is expected"
            )

    def _check(self, space: gym.Box | gym.MultiBinary) -> None:
        """Refuse boxes that hold nothing, or of which nobody knows what they hold."""
        if math.prod(space.shape) == 0:
            raise self._refused(space, "it holds no number; one or more is expected")
        if isinstance(space, gym.Box) and (np.isnan(space.low).any() or np.isnan(space.high).any()):
            raise self._refused(space, "a bound is NaN; numbers, or infinities for none, are expected")
        if np.dtype(space.dtype).kind not in "fiub":
            raise self._refused(space, "real numbers are expected")

    def _refused(self, space: gym.Space, why: str) -> SettingError:
        inside = "" if space is self._space else f", with {shown(space)}"
        return SettingError(f"--env {self._env}: observations are {shown(self._space)}{inside}: {why}")


def has_mask(space: gym.Space) -> bool:
    return isinstance(space, gym.Dict) and MASK in space.spaces


def with_mask(space: gym.Space, size: int) -> gym.Dict:
    """Return the space of observations beside which masks come."""
    return gym.Dict({"observation": space, MASK: gym.Box(0, 1, (size,))})


def _follow(observation: Any, keys: Keys) -> Any:
    for key in keys:
        observation = observation[key]
    return observation


def is_bytes(space: gym.Box) -> bool:
    return space.dtype in (np.uint8, np.bool_)


def is_image(space: gym.Box, raw: bool = False) -> bool:
    """Say whether a Box holds images: bytes of rank 2 (grey), or numbers of rank 3 or 4 (a stack of images)."""
    if raw:
        return space.dtype == np.uint8 and len(space.shape) == 3
    rank = len(space.shape)
    return (rank in (3, 4) or (rank == 2 and is_bytes(space))) and min(_planes(space)[1:]) >= SMALLEST_SIDE


def _channels_last(space: gym.Box) -> bool:
    frame = space.shape[-3:]
    return len(frame) == 3 and frame[-1] < frame[0]


def _planes(space: gym.Box) -> tuple[int, int, int]:
    """Return the shape of images as a network takes them: [channels, height, width]."""
    stack, frame = math.prod(space.shape[:-3]), space.shape[-3:]
    if len(frame) == 2:
        return 1, *frame
    channels, height, width = (frame[2], *frame[:2]) if _channels_last(space) else frame
    return stack * channels, height, width


class _Reader:
    """Reads one space that holds no others.

    Attributes:
        space: what it reads.
        keys: the way to it inside nested observations.
        size: how many numbers it becomes.
    """

    def __init__(self, space: gym.Space, keys: Keys, size: int):
        self.space, self.keys, self.size = cast(Any, space), keys, size

    @property
    def name(self) -> str:
        return f"observation[{'.'.join(map(str, self.keys))}]" if self.keys else "observation"

    def read(self, values: np.ndarray) -> np.ndarray:
        """[N, *shape of the space] → a new array, float32 [N, size]. Raises ValueError: a value is none of the space's."""
        raise NotImplementedError


class Numbers(_Reader):
    """Boxes that are no images, and MultiBinary: flattened. Bytes are divided by their upper bounds, unless `raw`."""

    def __init__(self, space: gym.Box | gym.MultiBinary, keys: Keys, raw: bool):
        super().__init__(space, keys, math.prod(space.shape))
        self._factor: np.ndarray | None = None
        if isinstance(space, gym.Box) and is_bytes(space) and not raw:
            self._factor = 1 / np.maximum(space.high.ravel(), 1).astype(np.float32)

    def read(self, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # of float64: what is infinite then is named where it is learnt from
            rows = values.reshape(len(values), -1).astype(np.float32)
        return rows if self._factor is None else np.multiply(rows, self._factor, out=rows)


class OneHot(_Reader):
    """Discrete and MultiDiscrete: a 1 in place of each choice, among zeros."""

    def __init__(self, space: gym.Discrete | gym.MultiDiscrete, keys: Keys):
        self._counts = np.ravel(space.n if isinstance(space, gym.Discrete) else space.nvec).astype(np.int64)
        self._start = np.ravel(space.start).astype(np.int64)
        self._places = np.cumsum(self._counts) - self._counts
        super().__init__(space, keys, int(self._counts.sum()))

    def read(self, values: np.ndarray) -> np.ndarray:
        chosen = values.reshape(len(values), -1).astype(np.int64) - self._start
        if ((chosen < 0) | (chosen >= self._counts)).any():
            raise ValueError(", ".join(map(str, np.ravel(values[((chosen < 0) | (chosen >= self._counts)).any(1)][0]))))
        rows = np.zeros((len(values), self.size), np.float32)
        rows[np.arange(len(values))[:, None], self._places + chosen] = 1
        return rows


class Pixels(_Reader):
    """Images, brought to channels first; the images of a stack one after the other.

    Attributes:
        planes: [channels, height, width].
        dtype: uint8 (bytes, truth values), else float32.
        scale: what the network multiplies bytes by: one over their largest upper bound (`raw`: 1/255). Other numbers are scaled
            here, to 0..1 by their bounds where all are finite.
    """

    def __init__(self, space: gym.Box, keys: Keys, raw: bool):
        super().__init__(space, keys, math.prod(space.shape))
        self._raw, self._last, self.planes = raw, _channels_last(space), _planes(space)
        self.dtype, self.scale = np.dtype(np.uint8), 1 / 255
        self._low: Any = 0.0
        self._span: Any = None
        if is_bytes(space):
            self.scale = 1 / 255 if raw else 1 / max(1, int(space.high.max()))
            return
        self.dtype, self.scale = np.dtype(np.float32), 1.0
        low, high = (self._arranged(bound[None])[0].astype(np.float64) for bound in (space.low, space.high))
        if max(np.abs(low).max(), np.abs(high).max()) < BOUNDLESS and (high > low).any():
            self._low, self._span = low, np.where(high > low, high - low, 1)

    def flattened(self) -> _Reader:
        """Return a reader of the same numbers, flattened, for what becomes part of a vector."""
        return Numbers(self.space, self.keys, self._raw)

    def read(self, values: np.ndarray) -> np.ndarray:
        """[N, *shape of the space] → a new array, [N, channels, height, width]."""
        images = self._arranged(values)
        if self._span is not None:
            return ((images - self._low) / self._span).astype(np.float32)
        with np.errstate(over="ignore"):
            return images.astype(self.dtype, order="C")

    def _arranged(self, values: np.ndarray) -> np.ndarray:
        images = np.moveaxis(values, -1, -3) if self._last else values
        return images.reshape(len(values), *self.planes)


class Mask(_Reader):
    """Which actions may be taken: 1 in place of each, 0 of all others.

    Args:
        counts: of the actions of each choice, which are behind each other.
    """

    def __init__(self, space: gym.Box | gym.MultiBinary, keys: Keys, counts: tuple[int, ...]):
        super().__init__(space, keys, sum(counts))
        self._first = np.cumsum((0, *counts[:-1]))

    def read(self, values: np.ndarray) -> np.ndarray:
        return (values.reshape(len(values), -1) != 0).astype(np.float32)

    def helpless(self, rows: np.ndarray) -> np.ndarray:
        """Return which of the masks that were read leave a choice without any action, bool [N]."""
        return (np.add.reduceat(rows, self._first, axis=1) == 0).any(1)


class Packed(_Reader):
    """Images as a part of a vector: scaled, and flattened in the order of their planes."""

    def __init__(self, pixels: Pixels):
        super().__init__(pixels.space, pixels.keys, pixels.size)
        self._pixels = pixels

    def read(self, values: np.ndarray) -> np.ndarray:
        rows = self._pixels.read(values).reshape(len(values), -1)
        return rows if self._pixels.scale == 1 and rows.dtype == np.float32 else rows * np.float32(self._pixels.scale)


class Actions:
    """What becomes of a network's actions for one space.

    Args:
        env: its environment's name, for messages.
        space: of one environment's actions.
        raw: as runs before there was a choice: boxes are not scaled to their bounds.

    Attributes:
        number: of a Discrete space; None: it is none.
        choices: of a MultiDiscrete or MultiBinary space: the number of each of its choices; empty: it is none.
        shape: [] of a Discrete space, [k] of k choices, the shape of a Box.
        counts: of the actions of each choice; empty: it is a Box.
        low, high: a Box's bounds, flattened.
        scale, offset: of a Box: an action is offset + scale · the network's, clipped to its bounds.

    Raises:
        SettingError: no network gives such actions; the message names the way out.
    """

    def __init__(self, env: str, space: gym.Space, raw: bool = False):
        self._space: Any = space
        self._raw = raw
        self.number: int | None = None
        self.choices: tuple[int, ...] = ()
        self.shape: tuple[int, ...] = ()
        self.low = self.high = None
        self.scale: tuple[float, ...] = ()
        self.offset: tuple[float, ...] = ()
        if isinstance(space, gym.Discrete):
            self.number = int(space.n)
        elif isinstance(space, (gym.MultiDiscrete, gym.MultiBinary)):
            counts = space.nvec if isinstance(space, gym.MultiDiscrete) else np.full(space.shape, 2)
            self.choices, self._start = tuple(counts.ravel().tolist()), np.ravel(getattr(space, "start", 0))
            self.shape = (len(self.choices),)
        elif isinstance(space, gym.Box):
            self.shape = space.shape
            self._take_bounds(env, space)
        else:
            raise SettingError(
                f"--env {env}: actions are {shown(space)}; a wrapper that takes Discrete, MultiDiscrete or a Box is expected"
            )
        if math.prod(self.shape) == 0:
            raise SettingError(f"--env {env}: actions are {shown(space)}, which holds no number; one or more is expected")
        if (numbers := sum(self.counts) or math.prod(self.shape)) > MOST_NUMBERS:
            raise SettingError(f"--env {env}: actions are {shown(space)}: {numbers:,}; {MOST_NUMBERS:,} at most is expected")

    @property
    def counts(self) -> tuple[int, ...]:
        return self.choices or (() if self.number is None else (self.number,))

    def _take_bounds(self, env: str, space: gym.Box) -> None:
        low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
        if np.isnan(low).any() or np.isnan(high).any() or (low > high).any():
            raise SettingError(f"--env {env}: actions are {shown(space)}; a low bound up to the high one is expected")
        bounded = (np.abs(low) < BOUNDLESS) & (np.abs(high) < BOUNDLESS) & (not self._raw)
        with np.errstate(invalid="ignore", over="ignore"):  # of infinities and the like, where the result is not taken
            self._scale = np.where(bounded, (high - low) / 2, 1.0).reshape(space.shape)
            self._offset = np.where(bounded, (high + low) / 2, 0.0).reshape(space.shape)
        self.low, self.high, self.scale, self.offset = (
            tuple(numbers.ravel().tolist()) for numbers in (low, high, self._scale, self._offset)
        )
        kind = np.dtype(space.dtype).kind
        self._whole = kind in "iub"
        exact = 2.0**53 if kind in "iu" else np.inf  # beyond it float64 cannot say the end of an int64
        self._low, self._high = (np.clip(bound.reshape(space.shape), -exact, exact) for bound in (low, high))

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Bring a network's actions to what the environments take, [N, ...]: a new array.

        Args:
            actions: int64 [N]; int64 [N, k] of k choices; float32 [N, *shape] of a Box.
        """
        if self.number is not None:
            return (actions + self._space.start).astype(self._space.dtype)
        if self.choices:
            return (actions + self._start).reshape(len(actions), *self._space.shape).astype(self._space.dtype)
        if self._raw:
            return np.clip(actions, self._space.low, self._space.high)
        exact = self._offset + self._scale * actions
        if self._whole:
            exact = np.rint(exact)
        return np.minimum(np.maximum(exact, self._low), self._high).astype(self._space.dtype)  # sooner than np.clip


def describe(observations: Observations, actions: Actions) -> Spaces:
    """Return what a network needs to know of both."""
    return Spaces(
        observations.shape,
        observations.image,
        actions.number,
        actions.shape,
        actions.low,
        actions.high,
        choices=actions.choices,
        action_scale=actions.scale,
        action_offset=actions.offset,
        dtype=observations.dtype.name,
        scale=observations.scale,
        image_shape=observations.image_shape,
        masked=observations.mask is not None,
        parts=observations.layout,
    )
