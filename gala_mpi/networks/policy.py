"""A policy: an encoder, a policy head and a value head.

Weights of the heads are orthogonal (gain 0.01 for the policy, 1 for the value), biases zero.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from gala_mpi.envs.base import Spaces
from gala_mpi.networks import encoders
from gala_mpi.networks.distributions import NEVER, Discrete, Gaussian, Masked, Policy, Several
from gala_mpi.networks.encoders import orthogonal
from gala_mpi.networks.statistics import BOUND, EPSILON, Scaling, Sums

Precision = Literal["fp32", "bf16"]
CONSTANTS = {"epsilon": EPSILON, "bound": BOUND}  # of statistics, as a policy's description gives them


class Network(nn.Module):
    """Map observations to a distribution over actions and a value.

    Args:
        name: which encoder, a key of NETWORKS.
        spaces: what the environments give and take.
        precision: `bf16` computes the encoder in bfloat16; parameters, gradients and both heads are float32.
        action_std: the standard deviation of a box of actions at the start, in the network's units: 1 is half of the range of
            an action that has bounds.
        normalise_observations: keep statistics of observations, and scale their numbers (no pixels, no masks) by them.
        normalise_rewards: keep statistics of returns, by which rewards are scaled before values are learnt from them.

    Attributes:
        dtype: of the encoder's computation.
        scale: what observations are multiplied by before they enter the encoder: pixels come as 0..255.
        observation_sums, return_sums: the statistics; None: none are kept. They are the last parameters.
    """

    def __init__(
        self,
        name: str,
        spaces: Spaces,
        precision: Precision = "fp32",
        action_std: float = 1.0,
        normalise_observations: bool = False,
        normalise_rewards: bool = False,
    ):
        super().__init__()
        self.name, self.spaces, self.precision = name, spaces, precision
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.scale = spaces.scale
        self.encoder: Any = encoders.build(name, spaces)
        with torch.no_grad():
            features = self.encoder(torch.zeros(1, *spaces.unmasked.observation_shape)).shape[-1]
        self.policy = orthogonal(nn.Linear(features, spaces.outputs), 0.01)
        self.value = orthogonal(nn.Linear(features, 1), 1.0)
        if not spaces.discrete:
            self.log_std = nn.Parameter(torch.full((spaces.outputs,), math.log(action_std)))
        size = spaces.numbers.stop - spaces.numbers.start
        self.observation_sums = Sums(size) if normalise_observations else None
        self.return_sums = Sums(1) if normalise_rewards else None

    def forward(self, observations: torch.Tensor) -> tuple[Policy, torch.Tensor]:
        """Map observations [N, ...] (uint8 for images) to a distribution over N actions and values [N]."""
        mask = None
        if self.spaces.masked:
            observations, mask = observations[:, : -self.spaces.outputs], observations[:, -self.spaces.outputs :]
        if self.observation_sums is not None:
            observations = self.normalised(observations, self.observation_sums.scaling())
        with torch.autocast(observations.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            layout = torch.channels_last if self.spaces.image else torch.contiguous_format
            features = self.encoder(observations.to(self.dtype, memory_format=layout) * self.scale)
        return self.heads(features.float(), mask)

    def normalised(self, observations: torch.Tensor, scaling: Scaling) -> torch.Tensor:
        """Scale the numbers of observations without their masks, float32 [N, ...]. An image before them stays as it is."""
        first = self.spaces.numbers.start
        numbers = scaling(observations[:, first:])
        return torch.cat([observations[:, :first], numbers], 1) if first else numbers

    def heads(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[Policy, torch.Tensor]:
        """Map features float32 [..., F] to a distribution over actions [...] and values [...].

        Args:
            mask: [..., outputs], 0 for actions that may not be taken: their probability is 0. None: all may.
        """
        policy, value = self.policy(features), self.value(features).squeeze(-1)
        if mask is not None:
            policy = policy.masked_fill(mask == 0, NEVER)
        if self.spaces.choices:
            return Several.of(policy, self.spaces.choices), value
        if self.spaces.discrete:
            return (Discrete if mask is None else Masked)(policy), value
        shape = self.spaces.action_shape
        mean = policy.view(*value.shape, *shape)
        deviation = self.log_std.exp().view(shape)
        return Gaussian(mean, deviation.expand_as(mean), len(shape)), value

    def description(self) -> dict[str, Any]:
        """Say in words and numbers that JSON can hold which network this is, and what it takes and gives."""
        spaces = self.spaces
        observations: dict[str, Any] = {
            "shape": list(spaces.observation_shape),
            "dtype": spaces.observation_dtype.name,
            "scale": self.scale,
        }
        if spaces.image_shape:
            observations["image"] = {"offset": 0, "shape": list(spaces.image_shape)}
        if spaces.masked:
            observations["mask"] = spaces.outputs
        if spaces.parts:
            observations["parts"] = [dataclasses.asdict(part) for part in spaces.parts]
        if self.observation_sums is not None:
            observations["normalised"] = {"sums": "observation_sums", "offset": spaces.numbers.start} | CONSTANTS
        actions: dict[str, Any] = {"number": spaces.actions}
        if spaces.choices:
            actions = {"numbers": list(spaces.choices)}
        elif not spaces.discrete:
            actions = {
                "shape": list(spaces.action_shape),
                "low": _finite(spaces.low),
                "high": _finite(spaces.high),
                "scale": list(spaces.action_scale),
                "offset": list(spaces.action_offset),
            }
        said = {"network": self.name, "precision": self.precision, "observations": observations, "actions": actions}
        if self.return_sums is not None:
            said["rewards"] = {"normalised": {"sums": "return_sums"} | CONSTANTS}
        return said


def _finite(bounds: tuple[float, ...] | None) -> list[float | None] | None:
    """Bounds of a box as JSON can hold them: None for one that is infinite."""
    return None if bounds is None else [bound if math.isfinite(bound) else None for bound in bounds]


def fastest_precision(name: str, spaces: Spaces, batch: int, device: torch.device) -> Precision:
    """Return `bf16` if images are learnt from clearly faster with it on this machine (native instructions), else `fp32`.

    Pixels have 8 bits, and so have bfloat16's fractions. A vector's numbers have more, which would be lost at the first layer;
    so have images of other numbers. It takes about 0.3 s.
    """
    if not spaces.image or spaces.observation_dtype != np.uint8:
        return "fp32"
    observations = torch.zeros((batch, *spaces.observation_shape), dtype=torch.uint8, device=device)
    networks = {p: Network(name, spaces, p) for p in get_args(Precision)}
    for network in networks.values():
        network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stubs lack it
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
