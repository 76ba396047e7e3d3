"""The residual network of IMPALA (Espeholt et al. 2018, figure 3, right), "deep" in their experiments."""

from __future__ import annotations

import math

import torch
from torch import nn

from gala_mpi.envs.base import Spaces
from gala_mpi.networks.encoders import Flatten

CHANNELS, UNITS = (16, 32, 32), 256
TRUNCATED = 2.0  # standard deviations, beyond which Sonnet draws no weight


def impala(spaces: Spaces) -> nn.Sequential:
    """Build three stages of a convolution, a pooling and two residual blocks, and a layer of 256 units behind a ReLU.

    Weights are drawn as in the authors' code, by the default of its library (Sonnet 1): from a normal distribution with the
    standard deviation 1/√(inputs of a unit), none beyond two of them. Biases are zero.
    """
    planes, height, width = spaces.observation_shape
    layers: list[nn.Module] = []
    for channels in CHANNELS:
        layers += [_drawn(nn.Conv2d(planes, channels, 3, padding=1)), nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [Block(channels), Block(channels)]
        planes, height, width = channels, (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(*layers, nn.ReLU(), Flatten(), _drawn(nn.Linear(planes * height * width, UNITS)), nn.ReLU())


class Block(nn.Module):
    """x + f(x) of images of one size, where f is twice a ReLU and a convolution of 3×3 pixels (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.second = (_drawn(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] → [N, C, H, W]."""
        return images + self.second(self.first(images.relu()).relu())


def _drawn(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Draw a layer's weight in place, and return it."""
    deviation = 1 / math.sqrt(layer.weight[0].numel())
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-TRUNCATED * deviation, b=TRUNCATED * deviation)
    assert layer.bias is not None  # the default
    nn.init.zeros_(layer.bias)
    return layer
