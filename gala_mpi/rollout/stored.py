"""The plain path: observations of a rollout are stored, and its forward passes done again to be differentiated by autograd.

It takes any network, and any part of a rollout any number of times, at whatever the parameters are then.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from gala_mpi.networks.distributions import Policy
from gala_mpi.networks.policy import Network


class Stored:
    """The observations of the forward passes of T steps. See `Passes`.

    Args:
        network: its parameters must have a `grad` (see `flat.py`) when a gradient comes.
        steps: T.
        observations: what one pass sees, [N, ...]; only its shape, dtype and device are used.
        turns: how many passes make a step, each over N other rows.
        between: called when the gradient of a parameter is there, in the middle of the longest time without anything else.
    """

    name = "stored"

    def __init__(
        self,
        network: Network,
        steps: int,
        observations: torch.Tensor,
        turns: int = 1,
        between: Callable[[], None] | None = None,
    ):
        self._network, self._batch = network, len(observations)
        self._grid = steps, turns * len(observations)
        self._rows = steps * turns * len(observations)
        self._observations = torch.empty_like(observations[:1]).repeat(self._rows, *[1] * (observations.dim() - 1))
        if between is not None:
            for parameter in filter(lambda parameter: parameter.requires_grad, network.parameters()):
                parameter.register_post_accumulate_grad_hook(lambda _: between())

    def load_parameters(self) -> None:
        """Begin a new rollout. There is nothing to do: a pass takes the parameters as they are."""

    @torch.no_grad()
    def forward(self, number: int, observations: torch.Tensor) -> tuple[Policy, torch.Tensor]:
        """Do pass `number` (step by step, turn by turn, from 0 on) over [N, ...]: a distribution over actions and values."""
        first = number * self._batch
        if first < self._rows:  # the last step's bootstrap
            self._observations[first : first + self._batch].copy_(observations)
        return self._network(observations)

    def evaluate(self, rows: torch.Tensor | None = None) -> tuple[Policy, torch.Tensor]:
        """Do the passes of steps 0 .. T-1 again, with gradient: a distribution over actions and values, [T, N].

        Args:
            rows: int64 [M], those of T · N steps that are wanted, [M] then.
        """
        policy, values = self._network(self._observations if rows is None else self._observations[rows])
        return (policy, values) if rows is not None else (policy.joined([policy], self._grid), values.view(self._grid))

    def backward(self, loss: torch.Tensor) -> None:
        """Put the gradient of `loss` in place of the parameters' `grad`."""
        for parameter in self._network.parameters():
            assert parameter.grad is not None  # see `flat.py`
            parameter.grad.zero_()
        loss.backward()

    def observations(self) -> torch.Tensor:
        """Return what the network saw at steps 0 .. T-1, [T, N, ...], in the dtype of observations."""
        return self._observations.view(*self._grid, *self._observations.shape[1:])
