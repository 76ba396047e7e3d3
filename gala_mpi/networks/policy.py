"""A policy: an encoder, a memory if it has one, a policy head and a value head, unless the encoder has heads of its own.

Weights of the heads are orthogonal (gain 0.01 for the policy, 1 for the value), biases zero.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from gala_mpi.envs.base import Part, Spaces
from gala_mpi.errors import SettingError
from gala_mpi.networks import encoders, own
from gala_mpi.networks.distributions import NEVER, Discrete, Gaussian, Masked, Policy, Several
from gala_mpi.networks.encoders import orthogonal
from gala_mpi.networks.recurrent import Kind, Memory
from gala_mpi.networks.statistics import BOUND, EPSILON, Scaling, Sums

Precision = Literal["fp32", "bf16"]
MOST_ROWS, LONG_ENOUGH = 256, 1.0  # of a measurement: more rows, or seconds, tell nothing else
CONSTANTS = {"epsilon": EPSILON, "bound": BOUND}  # of statistics, as a policy's description gives them


class Network(nn.Module):
    """Map observations to a distribution over actions and a value.

    Args:
        name: which encoder, a key of NETWORKS.
        spaces: what the environments give and take.
        precision: `bf16` computes the encoder in bfloat16; parameters, gradients, memory and both heads are float32.
        action_std: the standard deviation of a box of actions at the start, in the network's units: 1 is half of the range of
            an action that has bounds.
        memory: the recurrent core between encoder and heads; None: what the network says goes by an observation alone.
        memory_size: how many units that has.
        normalise_observations: keep statistics of observations, and scale their numbers (no pixels, no masks) by them.
        normalise_rewards: keep statistics of returns, by which rewards are scaled before values are learnt from them.
        settings: what the encoder is told besides the spaces (see `NetworkMember`).

    Attributes:
        dtype: of the encoder's computation.
        policy, value: the heads; None: the encoder, one of the user's own, returns (outputs, values) itself.
        scale: what observations are multiplied by before they enter the encoder: pixels come as 0..255.
        state_size: S, how many numbers the memory holds of an episode; 0 without one.
        observation_sums, return_sums: the statistics; None: none are kept. They are the last parameters.
    """

    def __init__(
        self,
        name: str,
        spaces: Spaces,
        precision: Precision = "fp32",
        action_std: float = 1.0,
        memory: Kind | None = None,
        memory_size: int = 256,
        normalise_observations: bool = False,
        normalise_rewards: bool = False,
        settings: Mapping[str, str] = MappingProxyType({}),
    ):
        super().__init__()
        self.name, self.spaces, self.precision = name, spaces, precision
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.scale = spaces.scale
        self.settings = dict(settings)
        self.encoder: Any = encoders.build(name, spaces, **settings)
        features, *values = (each.shape[-1] for each in own.returned(self.encoder, spaces.unmasked))
        if memory and values:
            why = "it has heads of its own; one that returns features is expected"
            raise SettingError(f"--network {name} --memory {memory}: {why}")
        self.memory = Memory(memory, features, memory_size) if memory else None
        self.state_size, features = (self.memory.state_size, memory_size) if self.memory else (0, features)
        self.policy: Any = None if values else orthogonal(nn.Linear(features, spaces.outputs), 0.01)
        self.value: Any = None if values else orthogonal(nn.Linear(features, 1), 1.0)
        if not spaces.discrete:
            self.log_std = nn.Parameter(torch.full((spaces.outputs,), math.log(action_std)))
        size = spaces.numbers.stop - spaces.numbers.start
        self.observation_sums = Sums(size) if normalise_observations else None
        self.return_sums = Sums(1) if normalise_rewards else None

    def forward(self, observations: torch.Tensor) -> tuple[Policy, torch.Tensor]:
        """Map observations [N, ...] (uint8 for images) to a distribution over N actions and values [N].

        With a memory they are the first ones of N episodes.
        """
        policy, values, _ = self.step(observations, self.first_state(len(observations)))
        return policy, values

    def first_state(self, number: int) -> torch.Tensor:
        """Return the state before the first step of so many episodes, float32 [N, S]."""
        return torch.zeros(number, self.state_size, device=next(self.parameters()).device)

    def step(self, observations: torch.Tensor, state: torch.Tensor) -> tuple[Policy, torch.Tensor, torch.Tensor]:
        """Do one step of N episodes: map observations [N, ...] and a state [N, S] to a distribution over actions, values [N],
        and the next state."""
        features, mask = self.encode(observations)
        if self.memory is not None:
            features, state = self.memory(features, state)
        return *self.heads(features, mask), state

    def unroll(
        self, observations: torch.Tensor, state: torch.Tensor, resets: torch.Tensor
    ) -> tuple[Policy, torch.Tensor, torch.Tensor]:
        """Do T steps with a memory: map observations [T, N, ...] and the state before the first one, [N, S], to a distribution
        over actions [T, N], values [T, N] and the state after the last one.

        Args:
            resets: bool [T, N], whether an episode begins at a step.
        """
        assert self.memory is not None
        features, mask = self.encode(observations.flatten(0, 1))
        features, state = self.memory.unroll(features.unflatten(0, resets.shape), state, resets)
        return *self.heads(features, None if mask is None else mask.unflatten(0, resets.shape)), state

    def encode(self, observations: torch.Tensor) -> tuple[Any, torch.Tensor | None]:
        """Map observations [N, ...] to the encoder's features, float32 [N, F], and take off their mask, [N, outputs].

        In place of features, an encoder with heads of its own gives a pair: the policy's outputs, and values [N].
        """
        mask = None
        if self.spaces.masked:
            observations, mask = observations[:, : -self.spaces.outputs], observations[:, -self.spaces.outputs :]
        if self.observation_sums is not None:
            observations = self.normalised(observations, self.observation_sums.scaling())
        with torch.autocast(observations.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            layout = torch.channels_last if self.spaces.image else torch.contiguous_format
            features = self.encoder(observations.to(self.dtype, memory_format=layout) * self.scale)
        if self.policy is None:
            outputs, values = features
            return (outputs.float(), values.float().reshape(-1)), mask
        return features.float(), mask

    def normalised(self, observations: torch.Tensor, scaling: Scaling) -> torch.Tensor:
        """Scale the numbers of observations without their masks, float32 [N, ...]. An image before them stays as it is."""
        first = self.spaces.numbers.start
        numbers = scaling(observations[:, first:])
        return torch.cat([observations[:, :first], numbers], 1) if first else numbers

    def heads(self, features: Any, mask: torch.Tensor | None = None) -> tuple[Policy, torch.Tensor]:
        """Map features float32 [..., F] to a distribution over actions [...] and values [...].

        Args:
            features: or what the encoder's own heads gave, see `encode`.
            mask: [..., outputs], 0 for actions that may not be taken: their probability is 0. None: all may.
        """
        outputs, value = self.outputs(features, mask)
        return self.distribution(outputs), value

    def outputs(self, features: Any, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features float32 [..., F] to the numbers that a distribution is made of, [..., outputs], and values [...].

        Args:
            features: as for `heads`.
            mask: as for `heads`; logits of actions that may not be taken are NEVER.
        """
        if isinstance(features, tuple):
            outputs, value = features
        else:
            outputs, value = self.policy(features), self.value(features).squeeze(-1)
        return outputs if mask is None else outputs.masked_fill(mask == 0, NEVER), value

    @property
    def deviation(self) -> torch.Tensor | None:
        """The standard deviations of a box of actions, float32 [*action_shape]. None: actions are discrete."""
        return None if self.spaces.discrete else self.log_std.exp().view(self.spaces.action_shape)

    def distribution(self, outputs: torch.Tensor, deviation: torch.Tensor | None = None) -> Policy:
        """Return the distribution over actions [...] that is made of `outputs`, [..., outputs].

        Args:
            deviation: what `deviation` is, where it is known already.
        """
        if self.spaces.choices:
            return Several.of(outputs, self.spaces.choices)
        if self.spaces.discrete:
            return (Masked if self.spaces.masked else Discrete)(outputs)
        deviation = self.deviation if deviation is None else deviation
        assert deviation is not None  # actions are not discrete
        return Gaussian(outputs.view(*outputs.shape[:-1], *deviation.shape), deviation)

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
        said = {"network": self.name, **self.settings, "precision": self.precision, "observations": observations}
        said["actions"] = actions
        if self.memory is not None:
            said["memory"] = {"kind": self.memory.kind, "size": self.memory.size}
        if self.return_sums is not None:
            said["rewards"] = {"normalised": {"sums": "return_sums"} | CONSTANTS}
        return said


def described_spaces(said: Mapping[str, Any]) -> Spaces:
    """Return the spaces of which `Network.description` has said this. Older ones lack `scale` and `offset` of a box."""
    seen, actions = said["observations"], said["actions"]
    choices, shape = tuple(actions.get("numbers", ())), tuple(seen["shape"])
    return Spaces(
        shape,
        len(shape) == 3,  # all others are flattened
        actions.get("number"),
        (len(choices),) if choices else tuple(actions.get("shape", ())),
        _bounds(actions.get("low"), -math.inf),
        _bounds(actions.get("high"), math.inf),
        choices=choices,
        action_scale=tuple(actions.get("scale", ())),
        action_offset=tuple(actions.get("offset", ())),
        dtype=seen["dtype"],
        scale=seen["scale"],
        image_shape=tuple(seen["image"]["shape"]) if "image" in seen else None,
        masked="mask" in seen,
        parts=tuple(Part(**part) for part in seen.get("parts", ())),
    )


def _finite(bounds: tuple[float, ...] | None) -> list[float | None] | None:
    """Bounds of a box as JSON can hold them: None for one that is infinite."""
    return None if bounds is None else [bound if math.isfinite(bound) else None for bound in bounds]


def _bounds(said: list[float | None] | None, infinite: float) -> tuple[float, ...] | None:
    """The inverse of `_finite`."""
    return None if said is None else tuple(infinite if bound is None else bound for bound in said)


def fastest_precision(
    name: str, spaces: Spaces, rows: int, device: torch.device, settings: Mapping[str, str] = MappingProxyType({})
) -> Precision:
    """Return `bf16` if images are learnt from clearly faster with it on this machine (native instructions), else `fp32`.

    Pixels have 8 bits, and so have bfloat16's fractions. A vector's numbers have more, which would be lost at the first layer;
    so have images of other numbers, and so would have heads of the encoder's own, which are computed as it is. It takes about
    0.3 s, of large networks and many rows some seconds.

    Args:
        rows: how many observations are learnt from at once.
        settings: as for Network.
    """
    if not spaces.image or spaces.observation_dtype != np.uint8:
        return "fp32"
    networks = {p: Network(name, spaces, p, settings=settings) for p in get_args(Precision)}
    if networks["fp32"].policy is None:
        return "fp32"
    observations = torch.zeros((min(rows, MOST_ROWS), *spaces.observation_shape), dtype=torch.uint8, device=device)
    for network in networks.values():
        network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stubs lack it
    best, first = dict.fromkeys(networks, math.inf), time.perf_counter()
    for turn in range(12):  # in turn, so that whatever else the machine does disturbs both; the first passes only set up
        if turn > 1 and time.perf_counter() - first > LONG_ENOUGH:
            break
        for precision, network in networks.items():
            began = time.perf_counter()
            distribution, values = network(observations)
            (distribution.entropy().sum() + values.sum()).backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best[precision] = min(best[precision], time.perf_counter() - began)
    return "bf16" if best["bf16"] < 0.9 * best["fp32"] else "fp32"
