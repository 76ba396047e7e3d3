"""The path between: observations of a rollout are stored, and passes done again, any number of times, by kernels.

It is for networks of known layers (`chain.chains`) on a CPU, whose rollouts are learnt from several times or by another thread
than the one that plays. Autograd sees what is behind the chains alone: their outputs are leaves of its graph.

Where the value has a chain of its own, no action depends on it: values are computed when the rollout has ended, of many steps
at a time. What becomes of numbers by their statistics is the same for the whole rollout, and is computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gala_mpi.networks.distributions import Policy
from gala_mpi.networks.policy import Network
from gala_mpi.networks.statistics import Scaling
from gala_mpi.rollout.chain import Chain, Cut, chains
from gala_mpi.rollout.kernels import gradient_of
from gala_mpi.rollout.stored import Stored

VALUED_AT_ONCE = 256  # rows; there is room for the activations of so many


def computed_again(network: Network, device: torch.device) -> type[Stored]:
    """Return how a network's passes are done again on a device: by kernels where they can be, else by autograd alone."""
    return Recomputed if device.type == "cpu" and chains(network) else Stored


class Recomputed(Stored):
    """As Stored, for the networks that `computed_again` names. Arguments are the same."""

    name = "recomputed"
    _valuing: _Forward | None = None

    def __init__(
        self,
        network: Network,
        steps: int,
        observations: torch.Tensor,
        turns: int = 1,
        between: Callable[[], None] | None = None,
    ):
        super().__init__(network, steps, observations, turns)
        self._between = between or (lambda: None)
        one, batch, rows = observations[:1], len(observations), len(self._observations)
        acting, *valuing = chains(network)  # by themselves: another thread may learn meanwhile
        self._acting = Chain(acting, network.dtype, network.scale, one, batch, batch)
        self._cut = self._acting.cut(slice(0, batch))
        if valuing:
            self._valuing = _Forward(network, valuing, one, min(rows, VALUED_AT_ONCE))
            self._values = torch.empty(rows)
        self._learning: _Forward | None = None  # with room for the largest part that was asked for
        self._leaves: list[torch.Tensor] = []  # outputs of the chains that wait for their gradients
        self._others = False  # whether autograd brings gradients of the chains' parameters, too
        self.load_parameters()

    def load_parameters(self) -> None:
        with torch.no_grad():
            self._acting.load_parameters()
            self._deviation = self._network.deviation
        if self._valuing is not None:
            self._valuing.load_parameters()
        self._leaves, self._others = [], False
        sums = self._network.observation_sums
        self._scaling = None if sums is None else Scaling(*(each.numpy() for each in sums.scaling()))
        self._scaled: torch.Tensor | None = None

    @torch.no_grad()
    def forward(
        self, number: int, observations: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        rows = slice(number * self._batch, (number + 1) * self._batch)
        self._observations[rows].copy_(observations)
        features = self._acting.forward(self._normalised(observations), self._cut).to(torch.float32, copy=True)
        outputs, values = self._network.outputs(features) if self._valuing is None else (features, self._values[rows])
        return self._network.distribution(outputs, self._deviation), values

    @torch.no_grad()
    def end(self, steps: int) -> None:
        super().end(steps)
        if self._valuing is not None:
            seen = self._seen_scaled()[: self._rows + self._num_envs]
            for rows, values in zip(seen.split(self._valuing.rows), self._values.split(self._valuing.rows)):
                values[: len(rows)] = self._valuing(rows)[0].squeeze(-1)
                self._between()

    def evaluate(
        self, rows: torch.Tensor | None = None, state: torch.Tensor | None = None, resets: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        if self._leaves or not torch.is_grad_enabled():  # there is room for the activations of one gradient
            self._others |= torch.is_grad_enabled()
            return super().evaluate(rows, state, resets)
        seen = self._seen_scaled()[: self._rows] if rows is None else self._seen_scaled()[rows]
        if self._learning is None or self._learning.rows < len(seen):
            self._learning = _Forward(self._network, chains(self._network), seen[:1], len(seen), self._between)
        self._learning.load_parameters()
        grid = self._grid if rows is None else (len(seen),)
        self._leaves = [features.view(*grid, -1).requires_grad_() for features in self._learning(seen)]
        return self._network.heads(_as_encoded(self._leaves))

    def _normalised(self, observations: torch.Tensor) -> torch.Tensor:
        """Return observations as the chains see them in this rollout, [M, ...]."""
        return observations if self._scaling is None else torch.from_numpy(self._scaling(observations.numpy()))

    def _seen_scaled(self) -> torch.Tensor:
        """Return what the chains see at all T + 1 steps, [(T + 1) · N, ...]."""
        if self._scaling is None:
            return self._observations
        if self._scaled is None:
            self._scaled = self._normalised(self.seen)
        return self._scaled

    def backward(self, loss: torch.Tensor) -> None:
        super().backward(loss)
        leaves, others = self._leaves, self._others
        self._leaves, self._others = [], False
        with torch.no_grad():
            for chain, leaf in zip(self._learning.chains if self._learning else (), leaves):
                if leaf.grad is None:
                    continue
                by_autograd = [gradient_of(parameter).clone() for parameter in chain.written] if others else []
                chain.backward(leaf.grad.flatten(0, -2))
                for parameter, gradient in zip(chain.written, by_autograd):
                    gradient_of(parameter).add_(gradient)


def _as_encoded(features: list[torch.Tensor]) -> Any:
    """Return what chains gave as `Network.encode` does."""
    return features[0] if len(features) == 1 else (features[0], features[1].squeeze(-1))


class _Forward:
    """Some of a network's chains over up to so many rows.

    Args: see Chain.
    """

    def __init__(
        self,
        network: Network,
        encoders: Sequence[nn.Sequential],
        observation: torch.Tensor,
        rows: int,
        between: Callable[[], None] = lambda: None,
    ):
        self.rows = rows
        what = network.dtype, network.scale, observation, rows, None, between
        self.chains = [Chain(encoder, *what) for encoder in encoders]
        self._cuts: dict[int, list[list[Cut]]] = {}  # for so many rows, what is done at a time, chain by chain

    @torch.no_grad()
    def load_parameters(self) -> None:
        for chain in self.chains:
            chain.load_parameters()

    @torch.no_grad()
    def __call__(self, seen: torch.Tensor) -> list[torch.Tensor]:
        """Map observations [M, ...], normalised if they are to be, to what each chain gives, float32 [M, F]."""
        number = len(seen)
        if number not in self._cuts:
            self._cuts[number] = [self._cut(chain, number) for chain in self.chains]
        for chain, cuts in zip(self.chains, self._cuts[number]):
            for cut, part in zip(cuts, seen.split(chain.at_once) if len(cuts) > 1 else (seen,)):
                chain.forward(part, cut)
        return [chain.features[:number].to(torch.float32, copy=True) for chain in self.chains]

    def _cut(self, chain: Chain, number: int) -> list[Cut]:
        return [chain.cut(slice(at, min(at + chain.at_once, number))) for at in range(0, number, chain.at_once)]
