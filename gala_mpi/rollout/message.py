"""A rollout as bytes: what an actor sends, and how its learner makes a batch of it again.

A message is one record of fixed size, since every rollout has as many steps. Of the policy that played it brings the
log-probabilities of the actions that were drawn, which is what corrections go by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from gala_mpi.envs.base import Episode
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Acted, Batch
from gala_mpi.rollout.collector import Fault
from gala_mpi.rollout.stored import Stored

WORD_BYTES = 4  # of what mailboxes count in
LONGEST_WORDS = 32  # bytes, of what a fault is of


class Drawn:
    """A distribution of which nothing is known but the log-probabilities of the actions that were drawn from it.

    Args:
        log_probs: float32 [...].
    """

    def __init__(self, log_probs: torch.Tensor):
        self._log_probs = log_probs

    @classmethod
    def joined(cls, policies: Sequence[Drawn], shape: Sequence[int]) -> Drawn:
        """Join those of actions [N] each, in their order, to one of actions `shape`."""
        return cls(torch.cat([policy._log_probs for policy in policies]).view(*shape))

    def log_prob(self, actions: torch.Tensor) -> torch.Tensor:
        """Return the log-probabilities of the actions that were drawn, [...]; `actions` must be these."""
        return self._log_probs


class Played(NamedTuple):
    """A rollout, and where it comes from.

    Attributes:
        batch: of it.
        episodes: those that have ended in it.
        fault: what of it was not finite; None: nothing.
        version: of the parameters that have played it.
        waited: seconds for which its actor had waited before it.
    """

    batch: Batch
    episodes: list[Episode]
    fault: Fault | None
    version: int
    waited: float


class Form:
    """Reads and writes messages of T steps of N environments. The same on a learner and its actors.

    Args:
        network: whose rollouts; its spaces say what is seen and done.
        steps: T.
        num_envs: N.
        additions: how many numbers a rollout adds to the network's statistics.

    Attributes:
        words: how many float32 a message takes.
    """

    def __init__(self, network: Network, steps: int, num_envs: int, additions: int):
        spaces, grid = network.spaces, (steps, num_envs)
        self._steps, self._num_envs = steps, num_envs
        self._has_state, self._has_additions = network.memory is not None, additions > 0
        episode = np.dtype([("environment", "<i8"), ("length", "<i8"), ("score", "<f8")])
        fault = np.dtype([("environment", "<i8"), ("step", "<i8"), ("value", "<f8"), ("what", f"S{LONGEST_WORDS}")])
        action = spaces.action_shape if spaces.choices or not spaces.discrete else ()
        # The widest first, so that all numbers are aligned.
        self._record = np.dtype(
            [
                ("version", "<i8"),
                ("waited", "<f8"),
                ("ended", "<i8"),
                ("faults", "<i8"),
                ("fault", fault),
                ("episodes", episode, (steps * num_envs,)),  # of which `ended` there are
                ("actions", "<i8" if spaces.discrete else "<f4", (*grid, *action)),
                ("rewards", "<f4", grid),
                ("discounts", "<f4", grid),
                ("log_probs", "<f4", grid),
                ("values", "<f4", (steps + 1, num_envs)),
                ("state", "<f4", (num_envs, network.state_size)),
                ("additions", "<f4", (additions,)),
                ("seen", spaces.observation_dtype, ((steps + 1) * num_envs, *spaces.observation_shape)),
                ("resets", "?", grid),
            ]
        )
        self.words = -(-self._record.itemsize // WORD_BYTES)

    def _fields(self, words: np.ndarray) -> np.ndarray:
        """View a message, float32 [words], as its record, [1]."""
        return words.view(np.uint8)[: self._record.itemsize].view(self._record)

    def write(self, words: np.ndarray, played: Played) -> None:
        """Write a rollout into a message, float32 [words].

        Args:
            played: its passes are stored ones.
        """
        message, (batch, episodes, fault, version, waited) = self._fields(words), played
        assert isinstance(batch.passes, Stored)
        numbers = {
            "actions": batch.actions,
            "rewards": batch.rewards,
            "discounts": batch.discounts,
            "log_probs": batch.log_probs,
            "values": torch.cat([batch.values, batch.next_values[-1:]]),
            "state": batch.state,
            "additions": batch.additions,
            "seen": batch.passes.seen,
            "resets": batch.resets,
        }
        for name, value in numbers.items():
            if value is not None:
                message[name][0] = value.cpu().numpy()
        message["version"], message["waited"], message["ended"] = version, waited, len(episodes)
        message["episodes"][0, : len(episodes)] = [(each.environment, each.length, each.score) for each in episodes]
        message["faults"] = fault is not None
        if fault is not None:
            message["fault"] = (fault.environment, fault.step, fault.value, fault.what.encode())

    def read(self, words: np.ndarray, passes: Stored, first: int) -> Played:
        """Return the rollout of a message, float32 [words], of which nothing is needed any more then.

        Args:
            passes: become those of the batch: of the network that learns, with room for the rollout.
            first: the number of the first of these environments among all that the learner hears of.
        """
        message = self._fields(words)[0]
        device = passes.seen.device

        def tensor(name: str) -> torch.Tensor:
            return torch.from_numpy(np.array(message[name])).to(device)

        passes.load_parameters()
        passes.seen.copy_(torch.from_numpy(message["seen"]))
        values, log_probs, actions = tensor("values"), tensor("log_probs"), tensor("actions")
        acted = [Acted(Drawn(log_probs[t]), values[t], actions[t]) for t in range(self._steps)]  # pyright: ignore
        acted.append(acted[-1]._replace(values=values[-1], actions=None))
        batch = Batch(
            passes,
            tensor("rewards"),
            tensor("discounts"),
            tensor("resets"),
            acted,
            tensor("state") if self._has_state else None,
            tensor("additions") if self._has_additions else None,
        )
        ended = message["episodes"][: int(message["ended"])].tolist()
        episodes = [Episode(first + environment, score, length) for environment, length, score in ended]
        fault = None
        if message["faults"]:
            environment, step, value, what = message["fault"].tolist()
            fault = Fault(first + environment, step, what.decode(), value)
        return Played(batch, episodes, fault, int(message["version"]), float(message["waited"]))
