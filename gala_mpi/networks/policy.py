"""Networks: a torso, a policy head and a value head.

`nature` is the network of Mnih et al. 2015 (32-64-64-512); `gala` that of the GALA authors' code, whose third convolution
has 32 channels; `mlp` has two layers of 64 tanh units, for vector observations. Weights are orthogonal (gain √2; policy
head 0.01, value head 1), biases zero.
"""

from __future__ import annotations

import math
import time
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn
from torch.distributions import Normal

from gala_mpi.envs.base import Spaces
from gala_mpi.networks import NETWORKS
from gala_mpi.networks.distributions import Discrete, Gaussian, Policy
from gala_mpi.networks.encoders import orthogonal

Precision = Literal["fp32", "bf16"]


class Network(nn.Module):
    """Observations → a distribution over actions and a value.

    Args:
        name: which torso.
        spaces: what the environments give and take.
        precision: `bf16` computes the torso in bfloat16; parameters, gradients and both heads are float32.

    Attributes:
        dtype: of the torso's computation.
        scale: what observations are multiplied by before they enter the torso: pixels come as 0..255.
    """

    def __init__(self, name: str, spaces: Spaces, precision: Precision = "fp32"):
        super().__init__()
        self.spaces = spaces
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.scale = 1 / 255 if spaces.image else 1.0
        self.torso = NETWORKS[name].load()(spaces)
        with torch.no_grad():
            features = self.torso(torch.zeros(1, *spaces.observation_shape)).shape[-1]
        outputs = spaces.actions if spaces.discrete else math.prod(spaces.action_shape)
        self.policy = orthogonal(nn.Linear(features, outputs), 0.01)
        self.value = orthogonal(nn.Linear(features, 1), 1.0)
        if not spaces.discrete:
            self.log_std = nn.Parameter(torch.zeros(outputs))

    def forward(self, observations: torch.Tensor) -> tuple[Policy, torch.Tensor]:
        """Observations [N, ...] (uint8 for images) → a distribution over N actions, values [N]."""
        with torch.autocast(observations.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            layout = torch.channels_last if self.spaces.image else torch.contiguous_format
            features = self.torso(observations.to(self.dtype, memory_format=layout) * self.scale)
        return self.heads(features.float())

    def heads(self, features: torch.Tensor) -> tuple[Policy, torch.Tensor]:
        """Features float32 [N, F] → a distribution over N actions, values [N]."""
        policy, value = self.policy(features), self.value(features).squeeze(-1)
        if self.spaces.discrete:
            return Discrete(policy), value
        means = policy.view(-1, *self.spaces.action_shape)
        spread = self.log_std.exp().view(self.spaces.action_shape)
        normal = Normal(means, spread.expand_as(means), validate_args=False)
        return Gaussian(normal, means.dim() - 1, validate_args=False), value


def fastest_precision(name: str, spaces: Spaces, batch: int, device: torch.device) -> Precision:
    """`bf16` if this machine trains on a batch clearly faster with it (native instructions), else `fp32`. About 0.3 s."""
    observations = torch.from_numpy(np.zeros((batch, *spaces.observation_shape), spaces.observation_dtype)).to(device)
    networks = {p: Network(name, spaces, p).to(device, memory_format=torch.channels_last) for p in get_args(Precision)}
    best = dict.fromkeys(networks, math.inf)
    for _ in range(12):  # in turn, so that whatever else the machine does disturbs both; the first passes only set up
        for precision, network in networks.items():
            began = time.perf_counter()
            distribution, values = network(observations)
            (distribution.entropy().sum() + values.sum()).backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[precision] = min(best[precision], time.perf_counter() - began)
    return "bf16" if best["bf16"] < 0.9 * best["fp32"] else "fp32"
