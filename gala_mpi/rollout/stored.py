"""The plain path: observations of a rollout are stored, and its forward passes done again to be differentiated by autograd.

It takes any network, and any part of a rollout any number of times, at whatever the parameters are then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch

from gala_mpi.networks.distributions import Policy
from gala_mpi.networks.policy import Network


def _call_between(passes: Stored | None) -> None:
    if passes is not None and passes._between is not None:
        passes._between()


class Stored:
    """The observations of the forward passes of T + 1 steps (the last one bootstraps). See `Passes`.

    Args:
        network: its parameters must have a `grad` (see `flat.py`) when a gradient comes.
        steps: the most that a rollout has.
        observations: what one pass sees, [N, ...]; only its shape, dtype and device are used.
        turns: how many passes make a step, each over N other rows.
        between: called when the gradient of a layer's weight is there, in the middle of the longest time without anything else.
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
        self._parameters = list(network.parameters())  # to look for them in all modules takes longer than to set them to 0
        self._num_envs = turns * len(observations)
        rows = (steps + 1) * self._num_envs
        self._observations = torch.empty_like(observations[:1]).repeat(rows, *[1] * (observations.dim() - 1))
        self._after = network.first_state(self._num_envs)  # of the memory, after the steps that were evaluated last
        self.end(steps)
        self._between = between
        if between is not None:
            here = weakref.ref(self)  # torch keeps hooks where Python's garbage collector does not see them
            for parameter in self._parameters:
                if parameter.requires_grad and parameter.dim() > 1:  # each takes 20 µs, and a bias comes with its weight
                    parameter.register_post_accumulate_grad_hook(lambda _: _call_between(here()))

    def load_parameters(self) -> None:
        """Begin a new rollout. There is nothing to do: a pass takes the parameters as they are."""

    @torch.no_grad()
    def forward(
        self, number: int, observations: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        """Do pass `number` (step by step, turn by turn, from 0 on) over [N, ...]: a distribution over actions and values.

        Args:
            state: of the network's memory, [N, S], which becomes the next one. None: episodes begin.
        """
        first = number * self._batch
        self._observations[first : first + self._batch].copy_(observations)
        state = self._network.first_state(len(observations)) if state is None else state
        policy, values, after = self._network.step(observations, state)
        state.copy_(after)
        return policy, values

    def end(self, steps: int) -> None:
        """Let the rollout have T = `steps` steps, as many as there is room for or fewer."""
        self._grid, self._rows = (steps, self._num_envs), steps * self._num_envs

    def evaluate(
        self, rows: torch.Tensor | None = None, state: torch.Tensor | None = None, resets: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        """Do the passes of steps 0 .. T-1 again, with gradient: a distribution over actions and values, [T, N].

        A memory is unrolled over all of them, and differentiated through no further than to its state before the first one.

        Args:
            rows: int64 [M], those of T · N steps that are wanted, [M] then; with a memory those of N environments, [T, M].
            state: of the memory, before the first step, [N, S].
            resets: bool [T, N], whether an episode begins at a step.
        """
        if state is not None and resets is not None:
            observations = self.observations()
            if rows is not None:
                observations, state, resets = observations[:, rows], state[rows], resets[:, rows]
            policy, values, after = self._network.unroll(observations, state, resets)
            self._after = after.detach()
            return policy, values
        policy, values = self._network(self._observations[: self._rows] if rows is None else self._observations[rows])
        return (policy, values) if rows is not None else (policy.joined([policy], self._grid), values.view(self._grid))

    @torch.no_grad()
    def bootstrap(self) -> torch.Tensor:
        """Return the value of what was seen after the last step, [N], by the network as it is now: after `evaluate` of all."""
        return self._network.step(self._observations[self._rows : self._rows + self._num_envs], self._after)[1]

    @property
    def seen(self) -> torch.Tensor:
        """What the network saw at all T + 1 steps, [(T + 1) · N, ...]: to be read, or to be set where another has played."""
        return self._observations[: self._rows + self._num_envs]

    def backward(self, loss: torch.Tensor) -> None:
        """Put the gradient of `loss` in place of the parameters' `grad`."""
        grads = [parameter.grad for parameter in self._parameters]
        assert all(grad is not None for grad in grads)  # see `flat.py`
        torch._foreach_zero_(grads)  # pyright: ignore[reportPrivateImportUsage, reportArgumentType]  # as torch.optim does
        loss.backward()

    def observations(self) -> torch.Tensor:
        """Return what the network saw at steps 0 .. T-1, [T, N, ...], in the dtype of observations."""
        return self._observations[: self._rows].view(*self._grid, *self._observations.shape[1:])
