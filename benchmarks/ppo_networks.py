"""Stable-Baselines3's networks for numbers, as networks of gala_mpi: `--network ppo_networks:apart`."""

from __future__ import annotations

import math

import torch
from torch import nn

from gala_mpi.networks.encoders import orthogonal


def apart(spaces) -> nn.Module:
    """Return SB3's MlpPolicy: two networks of 64-64 tanh units, one of the policy and one of the value."""
    return Apart(math.prod(spaces.observation_shape), spaces.outputs)


class Apart(nn.Module):
    """Two chains from an observation, float32 [N, inputs]: to the policy's outputs, [N, outputs], and to values, [N]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.policy, self.value = chain(inputs, outputs, gain=0.01), chain(inputs, 1, gain=1.0)

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.policy(observations), self.value(observations).squeeze(-1)


def chain(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    hidden = (orthogonal(nn.Linear(inputs, 64)), nn.Tanh(), orthogonal(nn.Linear(64, 64)), nn.Tanh())
    return nn.Sequential(*hidden, orthogonal(nn.Linear(64, outputs), gain))
