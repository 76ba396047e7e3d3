"""Encoders: functions from an environment's spaces to a module that turns observations into features.

An encoder takes float32 [N, *observation_shape] (pixels scaled to [0, 1]; under bf16 in bfloat16) and returns [N, F].
Weights are orthogonal (gain √2), biases zero.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from gala_mpi.envs.base import Spaces
from gala_mpi.networks import NETWORKS


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


def small(spaces: Spaces) -> nn.Sequential:
    """Build the network of MinAtar (Young & Tian 2019): one convolution of 3×3 pixels, and a layer of 128 units."""
    planes, height, width = spaces.observation_shape
    convolution, features = orthogonal(nn.Conv2d(planes, 16, 3)), 16 * (height - 2) * (width - 2)
    return nn.Sequential(convolution, nn.ReLU(), Flatten(), orthogonal(nn.Linear(features, 128)), nn.ReLU())


def mlp(spaces: Spaces) -> nn.Sequential:
    """Build two layers of 64 tanh units, for observations that are vectors; images are flattened."""
    inputs = math.prod(spaces.observation_shape)
    layers = [orthogonal(nn.Linear(inputs, 64)), nn.Tanh(), orthogonal(nn.Linear(64, 64)), nn.Tanh()]
    return nn.Sequential(*([Flatten()] if spaces.image else []), *layers)


class Beside(nn.Module):
    """The features of an image beside the numbers that are packed behind it, and a layer of 128 units over both.

    Args:
        image: an encoder of the image.
        shape: [channels, height, width] of the image, with which an observation begins.
        numbers: how many follow it. None: the features are those of the image.
    """

    def __init__(self, image: nn.Module, shape: tuple[int, int, int], numbers: int):
        super().__init__()
        self.image, self._shape, self._size = image, shape, math.prod(shape)
        with torch.no_grad():
            features = image(torch.zeros(1, *shape)).shape[-1]
        self.joint = orthogonal(nn.Linear(features + numbers, 128)) if numbers else None

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """[N, image and numbers] → [N, 128]."""
        images = packed[:, : self._size].unflatten(1, self._shape).contiguous(memory_format=torch.channels_last)
        features = self.image(images)
        if self.joint is None:
            return features
        return self.joint(torch.cat([features, packed[:, self._size :]], 1)).relu()


def build(name: str, spaces: Spaces) -> nn.Module:
    """Return the encoder of this name. One for images alone is told of the image that is packed with other numbers.

    It sees observations without their masks.
    """
    member, spaces = NETWORKS[name], spaces.unmasked
    if spaces.image_shape is None or not member.images:
        return member.load()(spaces)
    image = dataclasses.replace(spaces, observation_shape=spaces.image_shape, image=True, image_shape=None, parts=())
    numbers = spaces.observation_shape[0] - math.prod(spaces.image_shape)
    return Beside(member.load()(image), spaces.image_shape, numbers)


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Linear | nn.Conv2d:
    """Initialise a layer in place: an orthogonal weight (Saxe et al. 2014) times `gain`, a bias of zeros."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None  # the default
    nn.init.zeros_(layer.bias)
    return layer
