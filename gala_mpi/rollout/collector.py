"""The collector: T steps of N environments become a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from gala_mpi.clock import Clock
from gala_mpi.device import Upload, cuda_graph
from gala_mpi.envs.base import Environments, Episode
from gala_mpi.rollout import cached
from gala_mpi.rollout.batch import Acted, Batch, Passes, Player
from gala_mpi.rollout.cached import Cached
from gala_mpi.rollout.recomputed import computed_again
from gala_mpi.rollout.tally import Tally

# A value's loss is the square of a sum of rewards, which overflows float32 from here on; nothing could be learnt from it.
LARGEST_REWARD = 1e18


class Arrival(NamedTuple):
    """How a rollout came to its learner. NaN: it was not sent by anybody.

    Attributes:
        rollout_wait: seconds for which the learner waited for it.
        actor_wait: seconds for which the actor that played it had waited before, for room for it.
        rollouts_torn: how many rollouts have been thrown away so far, and read again.
    """

    rollout_wait: float = math.nan
    actor_wait: float = math.nan
    rollouts_torn: float = math.nan


class Collector:
    """Steps an agent's environments with its network's policy.

    Args:
        learner: whose network plays, and who decides how often a rollout is differentiated.
        environments: vectors of as many environments each, [N / G] of N. They take turns: while some play on, the network
            chooses actions for the next (--overlap). One vector waits for the network, and the network for it.
        seeds: int64 [N], one an environment.
        length: T.
        discount: γ.
        clip_rewards: show the learner only the sign of a reward, whatever the network knows of returns. Scores stay real.
        progress: called at every step, while environments run, and between the layers of the backward pass, so that MPI can
            move messages (progress is everybody's duty).
        clock: where the time goes.
        generator: what actions are drawn from; None: torch's global stream.
        shortest: the steps that are always played of a rollout; None: all T are.
        cut_short: asked from then on, before each step, whether the rollout is to end without it.
        delay: by how many seconds each step is slowed down (--slow-rank).
        lag: how many rollouts stay as they are while the next one is played, since another thread learns from them: 0 or 1.

    Attributes:
        steps: of the last rollout, T · N, or fewer if it was cut short.
        fault: what the environments gave that is not finite (or a reward of LARGEST_REWARD) and is part of the last rollout,
            the first of it; None: nothing.
            The network sees 0 in its place, so that it goes no further, but nothing can be learnt from the rollout.
        version: the update at whose beginning the parameters were those that played it; None: the one that asks for it.
        arrival: says that no rollout is sent.
        passes: of the last rollout; cached where the network and the learner allow it and there is no lag.
    """

    version: int | None = None
    arrival = Arrival()

    def __init__(
        self,
        learner: Player,
        environments: Sequence[Environments],
        seeds: np.ndarray,
        length: int,
        discount: float,
        clip_rewards: bool,
        progress: Callable[[], None],
        clock: Clock,
        generator: torch.Generator | None = None,
        shortest: int | None = None,
        cut_short: Callable[[], bool] = lambda: False,
        delay: float = 0.0,
        lag: int = 0,
    ):
        network = self.network = learner.network
        self.environments, self.clock, self.progress = environments, clock, progress
        self._generator = generator
        self.length, self.discount, self.clip_rewards = length, discount, clip_rewards
        self.num_envs = sum(each.num_envs for each in environments)
        self.steps = length * self.num_envs
        self._shortest, self._cut_short, self._delay = length if shortest is None else shortest, cut_short, delay
        self.device = next(network.parameters()).device
        # While others play, the network leaves them half of the cores: with all of them, both wait for each other's threads.
        # (Beside a thread that learns, the number stays: part of torch's libraries have one for all threads.)
        self.threads = torch.get_num_threads() if lag else max(1, torch.get_num_threads() // len(environments))
        self.fault: Fault | None = None
        self._played = 0  # steps of each environment
        self._uploads = [Upload(self.device) for _ in environments]
        self._upload_over = [Upload(self.device) for _ in environments]
        self._tally = Tally(network, self.num_envs, discount)
        # What the network's memory holds of each environment's episode, [N / G, S]; without a memory S is 0.
        self._states = [network.first_state(each.num_envs) for each in environments]
        self.reset(seeds)
        # For a GPU, torch runs the backward pass in a thread of its own, which must not call MPI. So does a lag.
        between = {} if lag or self.device.type != "cpu" else {"between": lambda: self.progress()}
        kind = Cached if not lag and cached.fits(network, learner) else computed_again(network, self.device)
        self._rooms = []
        for _ in range(1 + lag):
            passes = kind(network, length, self.observations[0], turns=len(environments), **between)
            self._rooms.append(_Room.of(passes, self._pass, (length + 1) * len(environments), self.device))
        self.passes: Passes = self._rooms[0].passes

    def reset(self, seeds: np.ndarray) -> None:
        """Begin new episodes in all environments, from seeds int64 [N]."""
        self._tally.reset()
        shares = np.split(seeds, len(self.environments))
        first = [each.reset(share) for each, share in zip(self.environments, shares)]
        self._at_hand: list[Fault | None] = [None] * len(first)  # what is wrong with the observations that come next
        self._shown = first  # as they come, on the host
        self.observations = [self._see(turn, observations) for turn, observations in enumerate(first)]
        for state in self._states:
            state.zero_()
        self._resets = np.ones(self.num_envs, bool)  # whether the next step of each environment begins a return

    @property
    def shown(self) -> np.ndarray:
        """What the environments show now, [N, ...], on the host."""
        return np.concatenate(self._shown)

    def close(self) -> None:
        for environments in self.environments:
            environments.close()

    def collect(self) -> tuple[Batch, list[Episode]]:
        """Play T steps, or fewer if the rollout is cut short; return them, and the episodes that ended in them."""
        record = self._record = _Record()
        self._rooms.append(room := self._rooms.pop(0))  # in turn
        self._room, self.passes = room, room.passes
        self.fault = next(filter(None, self._at_hand), None)
        room.load_parameters()
        self._tally.begin()
        state = torch.cat(self._states) if self.network.memory else None
        with _threads(self.threads):
            for t in range(self.length + 1):
                if t:
                    self._played += 1
                    with self.clock("simulate"):
                        keep_busy(self._delay)
                last = t == self.length or (t >= self._shortest and self._cut_short())
                for turn in range(len(self.environments)):
                    if t:
                        self._finish(turn)
                    self._act(t, turn, last)
                self.progress()
                if last:
                    break
        steps = len(record.over) // len(self.environments)
        with self.clock("act"):
            self.passes.end(steps)
        grid, self.steps = (steps, self.num_envs), steps * self.num_envs
        resets = np.concatenate([self._resets, *record.over]).reshape(-1, self.num_envs)
        self._resets = resets[-1]
        additions = self._tally.additions()
        batch = Batch(
            self.passes,
            rewards=room.rewards(np.concatenate(record.rewards, dtype=np.float32)).view(grid),
            discounts=room.discounts(np.concatenate(record.discounts, dtype=np.float32)).view(grid),
            resets=room.resets(resets[:-1]),
            acted=record.acted,
            state=state,
            additions=None if additions is None else room.additions(additions),
        )
        return batch, record.episodes

    def _act(self, t: int, turn: int, last: bool) -> None:
        """Run a pass over the observations at hand and send its actions, but for the last one, which bootstraps."""
        with self.clock("act"):
            before = self._states[turn].clone() if last else None
            acted = self._room.act_by_pass[t * len(self.environments) + turn]()
            if before is not None:  # its step is the next rollout's first one; where this one is cut short it has acted, too
                acted = acted._replace(actions=None)
                self._states[turn].copy_(before)
            self._record.acted.append(acted)
            if acted.actions is None:
                return
            chosen = acted.actions.cpu().numpy()
            self._tally.see(self._shown[turn])
        with self.clock("simulate"):
            self.environments[turn].send(chosen)

    def _pass(self, number: int) -> Acted:
        """Do pass `number` of the rollout over the observations at hand; draw actions, [N / G], unless it bootstraps."""
        t, turn = divmod(number, len(self.environments))
        policy, values = self.passes.forward(number, self.observations[turn], self._states[turn])
        return Acted(policy, values, policy.sample(self._generator) if t < self.length else None)

    def _finish(self, turn: int) -> None:
        """Wait for the step that these environments have begun, and write down what it brought."""
        with self.clock("simulate"):
            step = self.environments[turn].receive()
            self.observations[turn] = self._see(turn, step.observations)
            reward, fault = mended(step.rewards, np.inf if self.clip_rewards else LARGEST_REWARD)
            self._blame(turn, "a reward", fault)
            over = step.terminated | step.truncated
            first = sum(each.num_envs for each in self.environments[:turn])
            reward = np.sign(reward) if self.clip_rewards else self._tally.scaled(reward, over, first)
            if step.truncated.any():
                assert step.final_observations is not None  # they come with a truncation
                reward = reward + self.discount * self._cut_off_values(turn, step.final_observations, step.truncated)
            if self.network.memory and over.any():
                self._states[turn].masked_fill_(self._upload_over[turn](over)[:, None], 0)
            record = self._record
            record.rewards.append(reward)
            record.over.append(over)
            record.discounts.append(self.discount * ~over)
            # One whose rewards do not add up to a number has no score.
            episodes = [episode for episode in step.episodes if math.isfinite(episode.score)]
            record.episodes += [replace(episode, environment=first + episode.environment) for episode in episodes]

    def _see(self, turn: int, observations: np.ndarray) -> torch.Tensor:
        """Bring observations, [N / G, ...], to the device."""
        observations, fault = mended(observations)
        self._shown[turn] = observations
        self._at_hand[turn] = self._blame(turn, "an observation", fault)
        return self._uploads[turn](observations)

    def _blame(self, turn: int, what: str, fault: tuple[int, float] | None) -> Fault | None:
        """Keep the first fault of a rollout (see `mended`); return this one."""
        if fault is None:
            return None
        row, value = fault
        environment = row + sum(each.num_envs for each in self.environments[:turn])
        blamed = Fault(environment, self._played, what, value)
        self.fault = self.fault or blamed
        return blamed

    def _cut_off_values(self, turn: int, final: np.ndarray, truncated: np.ndarray) -> np.ndarray:
        """Return V of the observations that truncation cut off, 0 elsewhere: float32 [N / G]."""
        values = np.zeros(len(truncated), np.float32)
        cut_off, fault = mended(final[truncated])
        self._blame(turn, "an observation", fault and (int(np.flatnonzero(truncated)[fault[0]]), fault[1]))
        with torch.no_grad():
            state = self._states[turn][np.flatnonzero(truncated)]
            _, found, _ = self.network.step(torch.from_numpy(cut_off).to(self.device), state)
            values[truncated] = found.cpu().numpy()
        return values


def keep_busy(seconds: float) -> None:
    """Be slow as a straggler is: computing, not sleeping, and without a call into MPI."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


class Fault(NamedTuple):
    """A number of an environment that is not finite, or a reward that is too large."""

    environment: int  # of the agent's, from 0
    step: int  # of this environment since the start; 0: its first observation
    what: str
    value: float

    def __str__(self) -> str:
        return f"environment {self.environment} gave {self.what} of {self.value} at its step {self.step}"


def mended(rows: np.ndarray, largest: float = np.inf) -> tuple[np.ndarray, tuple[int, float] | None]:
    """Return `rows` ([N, ...], any dtype) with 0 in place of what is not finite or as large as `largest`, and the first such
    row and number, or None."""
    if rows.dtype.kind != "f":
        return rows, None
    finite = np.isfinite(rows) if largest == np.inf else np.abs(rows) < largest  # which NaN is not either
    if finite.all():
        return rows, None
    row, *rest = (int(index) for index in np.argwhere(~finite)[0])
    return np.where(finite, rows, rows.dtype.type(0)), (row, float(rows[row, *rest]))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@dataclass
class _Room:
    """Where a rollout lies until it has been learnt from: its passes, and what else goes to the device.

    A GPU's recordings are of operations on this memory.
    """

    passes: Passes
    load_parameters: Callable[[], None]
    act_by_pass: list[Callable[[], Acted]]
    rewards: Upload
    discounts: Upload
    resets: Upload
    additions: Upload

    @classmethod
    def of(cls, passes: Passes, do: Callable[[int], Acted], number: int, device: torch.device) -> _Room:
        """Return the room of passes, of which `do(0)`, `do(1)`, ... do one each, `number` in all."""
        act_by_pass = [cuda_graph(partial(do, each), device) for each in range(number)]
        return cls(passes, cuda_graph(passes.load_parameters, device), act_by_pass, *(Upload(device) for _ in range(4)))


@dataclass
class _Record:
    """A rollout as it comes, in the order of the passes: step by step, turn by turn, [N / G] each."""

    acted: list[Acted] = field(default_factory=list)
    rewards: list[np.ndarray] = field(default_factory=list)
    discounts: list[np.ndarray] = field(default_factory=list)
    over: list[np.ndarray] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)
