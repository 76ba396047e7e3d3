"""Networks of other shapes than this package's: see `own.py`."""

from __future__ import annotations

import math

import torch
from torch import nn

from gala_mpi.envs.base import Spaces


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def residual(spaces: Spaces) -> nn.Module:
    """An MLP with a block that is gone round, and layer normalisation."""
    inputs = math.prod(spaces.observation_shape)
    block = Residual(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), block, nn.Tanh())


class Skipping(nn.Module):
    """Convolutions, one of them gone round; images are flattened channels first."""

    def __init__(self, spaces: Spaces):
        super().__init__()
        channels = spaces.observation_shape[0]
        self.first = nn.Conv2d(channels, 8, 8, 4)
        self.block = Residual(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.last = nn.LazyLinear(24)
        with torch.no_grad():
            self.forward(torch.zeros(1, *spaces.observation_shape))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.block(self.first(images)).relu().flatten(1)).relu()


class Counting(nn.Module):
    """Keeps something that is no parameter."""

    def __init__(self, spaces: Spaces):
        super().__init__()
        self.layer = nn.Linear(math.prod(spaces.observation_shape), 8)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return self.layer(x)
