"""Encoders: functions from an environment's spaces to a module that turns observations into features.

An encoder takes float32 [N, *observation_shape] (pixels scaled to [0, 1]; under bf16 in bfloat16) and returns [N, F].
Weights are orthogonal (gain √2), biases zero.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from gala_mpi.envs.base import Spaces


class Flatten(nn.Module):
    """Flatten images in the order in which they lie in memory, channels last; nn.Flatten would reorder them."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] → [N, H · W · C]."""
        return images.permute(0, 2, 3, 1).flatten(1)


def gala(spaces: Spaces) -> nn.Sequential:
    """Build the network of the GALA authors' code, whose third convolution has 32 channels."""
    return convolutions((32, 64, 32), spaces)


def nature(spaces: Spaces) -> nn.Sequential:
    """Build the network of Mnih et al. 2015."""
    return convolutions((32, 64, 64), spaces)


def convolutions(channels: tuple[int, int, int], spaces: Spaces) -> nn.Sequential:
    """Build three convolutions with these channels, and a layer of 512 units, each followed by a ReLU."""
    planes, height, width = spaces.observation_shape
    layers: list[nn.Module] = []
    for out, kernel, stride in zip(channels, (8, 4, 3), (4, 2, 1)):
        layers += [orthogonal(nn.Conv2d(planes, out, kernel, stride)), nn.ReLU()]
        planes, height, width = out, (height - kernel) // stride + 1, (width - kernel) // stride + 1
    return nn.Sequential(*layers, Flatten(), orthogonal(nn.Linear(planes * height * width, 512)), nn.ReLU())


def mlp(spaces: Spaces) -> nn.Sequential:
    """Build two layers of 64 tanh units, for observations that are vectors."""
    inputs = math.prod(spaces.observation_shape)
    return nn.Sequential(orthogonal(nn.Linear(inputs, 64)), nn.Tanh(), orthogonal(nn.Linear(64, 64)), nn.Tanh())


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Linear | nn.Conv2d:
    """Initialise a layer in place: an orthogonal weight (Saxe et al. 2014) times `gain`, a bias of zeros."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None  # the default
    nn.init.zeros_(layer.bias)
    return layer
