"""The network: a policy and a value that share no layer."""

import math

import torch
from torch import nn


class Apart(nn.Module):
    """Heads of its own, so that the program puts none behind it.

    Args:
        inputs: how many numbers an observation has.
        outputs: how many numbers an action takes.
        units: of each of the two hidden layers.
    """

    def __init__(self, inputs: int, outputs: int, units: int = 32):
        super().__init__()
        self.actor, self.critic = _layers(inputs, units, outputs), _layers(inputs, units, 1)

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 [N, inputs] → logits of the actions, float32 [N, outputs], and values, float32 [N, 1]."""
        return self.actor(observations), self.critic(observations)


def apart(spaces) -> Apart:
    """Return the network for an environment's spaces: what `--network beam.networks:apart` names."""
    return Apart(math.prod(spaces.observation_shape), spaces.outputs)


def _layers(inputs: int, units: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, units), nn.Tanh(), nn.Linear(units, units), nn.Tanh(), nn.Linear(units, outputs))
