"""Networks as users name them, `--network nets:name`: some that learn, and some with a fault each."""

from __future__ import annotations

import math
import os

import torch
from torch import nn

from gala_mpi.envs.base import Spaces


def features(spaces: Spaces) -> nn.Module:
    """Features, which ours are put behind."""
    inputs = math.prod(spaces.observation_shape)
    return nn.Sequential(nn.Linear(inputs, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())


class Apart(nn.Module):
    """A policy and a value that share nothing, with heads of their own."""

    def __init__(self, spaces: Spaces):
        super().__init__()
        inputs = math.prod(spaces.observation_shape)
        self.actor = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, spaces.outputs))
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.actor(observations), self.critic(observations)


def convolved(spaces: Spaces) -> nn.Module:
    """For images of any size; the pixels' mean of each channel."""
    first = nn.Conv2d(spaces.observation_shape[0], 8, 3, 2)
    return nn.Sequential(first, nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 16), nn.GELU())


def linear(spaces: Spaces) -> nn.Module:
    """No parameters: heads of ours alone."""
    return nn.Flatten()


def frozen(spaces: Spaces) -> nn.Module:
    """Heads of its own, the last layer of which is not learnt."""
    apart = Apart(spaces)
    apart.critic[-1].requires_grad_(False)
    return apart


def another(spaces: Spaces) -> nn.Module:
    """Wider on rank 1."""
    return nn.Sequential(nn.Linear(4, 8 + _rank()), nn.Tanh())


def activated(spaces: Spaces) -> nn.Module:
    """Other activations on rank 1."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU() if _rank() else nn.Tanh())


def lost(spaces: Spaces) -> nn.Module:
    """Nothing on rank 1."""
    if _rank():
        raise OSError("no such file: weights.pt")
    return features(spaces)


def _rank() -> int:
    return int(next(os.environ[name] for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK") if name in os.environ))


# Faults


class Wrapped(nn.Module):
    """A layer, and something done with what it returns."""

    def __init__(self, spaces: Spaces, then=lambda x: x):
        super().__init__()
        self.layer, self.then = nn.Linear(math.prod(spaces.observation_shape), 6), then

    def forward(self, x: torch.Tensor):
        return self.then(self.layer(x))


class Counting(Wrapped):
    def __init__(self, spaces: Spaces):
        super().__init__(spaces)
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, x: torch.Tensor):
        self.passes += 1
        return super().forward(x)


def with_extra(spaces: Spaces) -> nn.Module:
    module = Wrapped(spaces)
    module.extra = nn.Linear(2, 2)
    return module


def scalar(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: x.sum())


def flat(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: x.view(-1, 2))


def named(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: {"features": x})


def chosen(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: x.argmax(1, keepdim=True))


def three(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: (x[:, :2], x[:, 0], x))


def wide(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: (x, x[:, 0]))


def beside(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: x - x.mean(0))


def infinite(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: x / 0)


def detached(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: x.detach())


def dropping(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, nn.Dropout(0.5))


def normalising(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, nn.BatchNorm1d(6))


def double(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, nn.Sequential(nn.Linear(6, 6).double())).double()


def half(spaces: Spaces) -> nn.Module:
    module = Wrapped(spaces)
    module.scale = nn.Parameter(torch.ones((), dtype=torch.float16))
    return module


def nothing_to_learn(spaces: Spaces) -> nn.Module:
    return Wrapped(spaces, lambda x: (x[:, : spaces.outputs], x[:, 0])).requires_grad_(False)


def narrow(spaces: Spaces) -> nn.Module:
    return nn.Linear(3, 8)


def no_module(spaces: Spaces) -> int:
    return 64


def raising(spaces: Spaces) -> nn.Module:
    raise ValueError("no weights\nare here")


def leaving(spaces: Spaces) -> nn.Module:
    raise SystemExit(3)


NUMBER = 3
