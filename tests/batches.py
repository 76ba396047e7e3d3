"""Rollouts that were never played: batches of made-up steps, which the plain path differentiates."""

from __future__ import annotations

import torch

from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Acted, Batch
from gala_mpi.rollout.stored import Stored


def made_up(
    network: Network, observations: torch.Tensor, actions: torch.Tensor, rewards: torch.Tensor, discounts: torch.Tensor
) -> Batch:
    """A batch of T steps of N environments.

    Args:
        network: its parameters have a `grad`.
        observations: [T + 1, N, ...].
        actions, rewards, discounts: [T, N, ...].
    """
    passes = Stored(network, len(actions), observations[0])
    acted = [Acted(*passes.forward(t, seen), *actions[t : t + 1]) for t, seen in enumerate(observations[:-1])]
    acted.append(Acted(*passes.forward(len(actions), observations[-1]), None))
    return Batch(passes, rewards, discounts, torch.zeros_like(rewards, dtype=torch.bool), acted)
