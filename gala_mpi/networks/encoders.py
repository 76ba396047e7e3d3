"""Encoders: functions from an environment's spaces to a module that turns observations into features.

An encoder takes float32 [N, *observation_shape] (pixels scaled to [0, 1]; under bf16 in bfloat16) and returns [N, F].
Weights are orthogonal (gain √2), biases zero.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import nn

from gala_mpi import networks
from gala_mpi.envs.base import Spaces
from gala_mpi.errors import SettingError
from gala_mpi.networks import own

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


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


def mlp(spaces: Spaces, hidden: str = "64,64", activation: str = "tanh", value_network: str = "shared") -> nn.Module:
    """Build linear layers for observations that are vectors; images are flattened.

    Args:
        hidden: how many units each has, as "64,64".
        activation: what follows each, "tanh" or "relu".
        value_network: "shared": the value's head is behind the same layers as the policy's. "copy": behind layers of its own.
    """
    if value_network == "shared":
        return linear(spaces, hidden, activation)
    policy, value = linear(spaces, hidden, activation), linear(spaces, hidden, activation)
    units = int(hidden.split(",")[-1])
    heads = orthogonal(nn.Linear(units, spaces.outputs), 0.01), orthogonal(nn.Linear(units, 1), 1.0)
    return Apart(policy.append(heads[0]), value.append(heads[1]))


def linear(spaces: Spaces, hidden: str, activation: str) -> nn.Sequential:
    """Build a chain of linear layers, as `mlp`."""
    layers: list[nn.Module] = [Flatten()] if spaces.image else []
    inputs = math.prod(spaces.observation_shape)
    for units in map(int, hidden.split(",")):
        layers += [orthogonal(nn.Linear(inputs, units)), ACTIVATIONS[activation]()]
        inputs = units
    return nn.Sequential(*layers)


class Beside(nn.Module):
    """The features of an image beside the numbers that are packed behind it, and a layer of 128 units over both.

    Args:
        image: an encoder of the image.
        shape: [channels, height, width] of the image, with which an observation begins.
        numbers: how many follow it. None: the features are those of the image.
    """

    def __init__(self, image: nn.Module, shape: tuple[int, int, int], numbers: int):
        super().__init__()
        self.image, self._shape, self._size, self.joint = image, shape, math.prod(shape), None
        if numbers:
            with torch.no_grad():
                features = image(torch.zeros(1, *shape)).shape[-1]
            self.joint = orthogonal(nn.Linear(features + numbers, 128))

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """[N, image and numbers] → [N, 128]."""
        images = packed[:, : self._size].unflatten(1, self._shape).contiguous(memory_format=torch.channels_last)
        features = self.image(images)
        if self.joint is None:
            return features
        return self.joint(torch.cat([features, packed[:, self._size :]], 1)).relu()


class Apart(nn.Module):
    """Two chains of layers, with the heads behind them: one of the policy, and one of the value."""

    def __init__(self, policy: nn.Sequential, value: nn.Sequential):
        super().__init__()
        self.policy, self.value = policy, value

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, ...] → the policy's outputs, [N, outputs], and values, [N]."""
        return self.policy(observations), self.value(observations).squeeze(-1)


def build(name: str, spaces: Spaces, **settings: str) -> nn.Module:
    """Return the encoder of this name, which sees observations without their masks.

    One for images alone is told of the image that is packed with other numbers, one of the user's own where there are none.

    Args:
        settings: what it is told besides the spaces: see `NetworkMember`.

    Raises:
        SettingError: it is one of the user's own that cannot be used.
    """
    spaces, member, is_own = spaces.unmasked, networks.member(name), networks.is_own(name)

    def make(spaces: Spaces) -> nn.Module:
        module = own.make(name, spaces) if is_own else member.load()(spaces, **settings)
        _require_parameters_alone(name, module)
        if is_own:
            own.try_out(name, module, spaces)
        return module

    if spaces.image_shape is None:
        return make(spaces)
    numbers = spaces.observation_shape[0] - math.prod(spaces.image_shape)
    if not (member.images or (is_own and not numbers)):
        return make(spaces)
    image = dataclasses.replace(spaces, observation_shape=spaces.image_shape, image=True, image_shape=None, parts=())
    return Beside(make(image), spaces.image_shape, numbers)


def _require_parameters_alone(name: str, encoder: nn.Module) -> None:
    """Refuse an encoder with a state that is no parameter, such as the running statistics of batch normalisation."""
    parameters = {key for key, _ in encoder.named_parameters(remove_duplicate=False)}
    unshared = [f"encoder.{key}" for key in sorted(set(encoder.state_dict()) - parameters)]
    if unshared:
        raise SettingError(
            f"--network {name}: it keeps {', '.join(unshared)}, which agents neither share nor save; "
            "parameters alone are expected, or constants that are registered with persistent=False"
        )


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float = math.sqrt(2)) -> nn.Linear | nn.Conv2d:
    """Initialise a layer in place: an orthogonal weight (Saxe et al. 2014) times `gain`, a bias of zeros."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None  # the default
    nn.init.zeros_(layer.bias)
    return layer
