"""The collector: T steps of N environments become a batch."""

from __future__ import annotations

import math
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
from gala_mpi.rollout.batch import Acted, Batch, Passes, Player
from gala_mpi.rollout.cached import Cached, fits
from gala_mpi.rollout.stored import Stored
from gala_mpi.rollout.tally import Tally

# A value's loss is the square of a sum of rewards, which overflows float32 from here on; nothing could be learnt from it.
LARGEST_REWARD = 1e18


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

    Attributes:
        steps: of a rollout, T · N.
        fault: what the environments gave that is not finite (or a reward of LARGEST_REWARD) and is part of the last rollout,
            the first of it; None: nothing.
            The network sees 0 in its place, so that it goes no further, but nothing can be learnt from the rollout.
        passes: cached where the network and the learner allow it, else stored.
    """

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
    ):
        network = self.network = learner.network
        self.environments, self.clock, self.progress = environments, clock, progress
        self._generator = generator
        self.length, self.discount, self.clip_rewards = length, discount, clip_rewards
        self.num_envs = sum(each.num_envs for each in environments)
        self.steps = length * self.num_envs
        self.device = next(network.parameters()).device
        # While others play, the network leaves them half of the cores: with all of them, both wait for each other's threads.
        self.threads = max(1, torch.get_num_threads() // len(environments))
        self.fault: Fault | None = None
        self._played = 0  # steps of each environment
        self._uploads = [Upload(self.device) for _ in environments]
        self._upload_rewards, self._upload_discounts, self._upload_resets = (Upload(self.device) for _ in range(3))
        self._upload_additions = Upload(self.device)
        self._tally = Tally(network, self.num_envs, discount)
        self.reset(seeds)
        # For a GPU, torch runs the backward pass in a thread of its own, which must not call MPI.
        between = {"between": lambda: self.progress()} if self.device.type == "cpu" else {}
        kind = Cached if fits(network, learner) else Stored
        self.passes: Passes = kind(network, length, self.observations[0], turns=len(environments), **between)
        self._load_parameters = cuda_graph(self.passes.load_parameters, self.device)
        numbers = range((length + 1) * len(environments))
        self._act_by_pass = [cuda_graph(partial(self._pass, number), self.device) for number in numbers]

    def reset(self, seeds: np.ndarray) -> None:
        """Begin new episodes in all environments, from seeds int64 [N]."""
        self._tally.reset()
        shares = np.split(seeds, len(self.environments))
        first = [each.reset(share) for each, share in zip(self.environments, shares)]
        self._at_hand: list[Fault | None] = [None] * len(first)  # what is wrong with the observations that come next
        self._shown = first  # as they come, on the host
        self.observations = [self._see(turn, observations) for turn, observations in enumerate(first)]
        self._resets = np.ones(self.num_envs, bool)  # whether the next step of each environment begins a return

    @property
    def shown(self) -> np.ndarray:
        """What the environments show now, [N, ...], on the host."""
        return np.concatenate(self._shown)

    def close(self) -> None:
        for environments in self.environments:
            environments.close()

    def collect(self) -> tuple[Batch, list[Episode]]:
        """Play T steps; return them, and the episodes that ended in them."""
        record = self._record = _Record()
        self.fault = next(filter(None, self._at_hand), None)
        self._load_parameters()
        self._tally.begin()
        with _threads(self.threads):
            for t in range(self.length + 1):
                self._played += t > 0
                for turn in range(len(self.environments)):
                    if t:
                        self._finish(turn)
                    self._act(t, turn)
                self.progress()
        grid = self.length, self.num_envs
        resets = np.concatenate([self._resets, *record.over]).reshape(-1, self.num_envs)
        self._resets = resets[-1]
        additions = self._tally.additions()
        batch = Batch(
            self.passes,
            rewards=self._upload_rewards(np.concatenate(record.rewards, dtype=np.float32)).view(grid),
            discounts=self._upload_discounts(np.concatenate(record.discounts, dtype=np.float32)).view(grid),
            resets=self._upload_resets(resets[:-1]),
            acted=record.acted,
            additions=None if additions is None else self._upload_additions(additions),
        )
        return batch, record.episodes

    def _act(self, t: int, turn: int) -> None:
        """Run a pass over the observations at hand and send its actions, but for the last one, which bootstraps."""
        with self.clock("act"):
            acted = self._act_by_pass[t * len(self.environments) + turn]()
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
        policy, values = self.passes.forward(number, self.observations[turn])
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
            values[truncated] = self.network(torch.from_numpy(cut_off).to(self.device))[1].cpu().numpy()
        return values


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
class _Record:
    """A rollout as it comes, in the order of the passes: step by step, turn by turn, [N / G] each."""

    acted: list[Acted] = field(default_factory=list)
    rewards: list[np.ndarray] = field(default_factory=list)
    discounts: list[np.ndarray] = field(default_factory=list)
    over: list[np.ndarray] = field(default_factory=list)
    episodes: list[Episode] = field(default_factory=list)
