"""The fast path: the forward passes of a rollout, cached for its backward pass.

Parameters do not change within a rollout, so the passes that chose the actions are the ones that A2C differentiates: there
is no second forward pass. It is for learners that differentiate a rollout once, and for encoders of known layers (`fits`).
Observations (converted) and activations of all passes lie in buffers made once (`chain.py`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from gala_mpi.networks import statistics
from gala_mpi.networks.distributions import Policy
from gala_mpi.networks.policy import Network
from gala_mpi.networks.statistics import Scaling
from gala_mpi.rollout.batch import Player
from gala_mpi.rollout.chain import Chain, chains


def fits(network: Network, learner: Player) -> bool:
    """Say whether a network's passes can be cached for a learner: it differentiates each rollout once, and the encoder is one
    chain of known layers."""
    return learner.one_pass and len(chains(network)) == 1


class Cached:
    """The observations and activations of the forward passes of T + 1 steps (the last one bootstraps). See `Passes`.

    Args:
        network: one that `fits`. Its parameters must have a `grad` (see `flat.py`) when a gradient comes.
        steps: the most that a rollout has.
        observations: what one pass sees, [N, ...]; only its shape, dtype and device are used.
        turns: how many passes make a step, each over N other rows.
        between: called between the layers of a backward pass, which is the longest time without anything else.
    """

    name = "cached"

    def __init__(
        self,
        network: Network,
        steps: int,
        observations: torch.Tensor,
        turns: int = 1,
        between: Callable[[], None] = lambda: None,
    ):
        self._network, self._dtype = network, observations.dtype
        batch, self._num_envs, passes = len(observations), turns * len(observations), (steps + 1) * turns
        (encoder,) = chains(network)
        sizes = observations[:1], passes * batch, batch
        self._chain = Chain(encoder, network.dtype, network.scale, *sizes, between)
        # What observations are before they are normalised, and how they are in this rollout.
        self._given: torch.Tensor | None = None
        self._scaling: Scaling | None = None
        if network.observation_sums is not None:
            self._given = torch.zeros_like(observations).repeat(passes, *[1] * (observations.dim() - 1))
            self._scaling = network.observation_sums.scaling()
        self._of_pass = [slice(at, at + batch) for at in range(0, passes * batch, batch)]
        self._cuts = [self._chain.cut(rows) for rows in self._of_pass]
        self.end(steps)
        # A backward pass writes the gradients of linear layers, and adds to all others.
        left = set(map(id, self._chain.written)) | statistics.parameters_of(network)
        self._added = [parameter for parameter in network.parameters() if id(parameter) not in left]

    def end(self, steps: int) -> None:
        """Let the rollout have T = `steps` steps, as many as there is room for or fewer."""
        self._grid, self._rows = (steps, self._num_envs), steps * self._num_envs

    @torch.no_grad()
    def load_parameters(self) -> None:
        """Begin a new rollout with the parameters as they are now."""
        self._chain.load_parameters()
        if self._scaling is not None and (sums := self._network.observation_sums) is not None:
            for mine, now in zip(self._scaling, sums.scaling()):
                mine.copy_(now)

    @torch.no_grad()
    def forward(
        self, number: int, observations: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        """Do pass `number` (step by step, turn by turn, from 0 on) over [N, ...]: a distribution over actions and values."""
        if self._scaling is not None and self._given is not None:
            self._given[self._of_pass[number]].copy_(observations)
            observations = self._network.normalised(observations, self._scaling)
        return self._network.heads(self._chain.forward(observations, self._cuts[number]).float())

    def evaluate(
        self, rows: torch.Tensor | None = None, state: torch.Tensor | None = None, resets: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        """Run the heads again over the features of steps 0 .. T-1, with gradient: a distribution over actions and values,
        [T, N]. The gradient of the features goes on to the encoder's parameters.

        Raises:
            ValueError: only all steps together can be differentiated.
        """
        if rows is not None:
            raise ValueError("cached passes are differentiated all together; rows of them need passes that are computed again")
        features = self._chain.features[: self._rows].float().requires_grad_()
        features.register_hook(self._backward)
        return self._network.heads(features.view(*self._grid, -1))

    @torch.no_grad()
    def bootstrap(self) -> torch.Tensor:
        """Return the value of what was seen after the last step, [N], by the passes' network: before `backward`."""
        return self._network.heads(self._chain.features[self._rows : self._rows + self._num_envs].float())[1]

    def backward(self, loss: torch.Tensor) -> None:
        """Put the gradient of `loss` in place of the parameters' `grad`. Once a rollout: activations are written over."""
        for parameter in self._added:
            assert parameter.grad is not None  # see `flat.py`
            parameter.grad.zero_()
        loss.backward()

    @torch.no_grad()
    def _backward(self, gradient: torch.Tensor) -> None:
        self._chain.backward(gradient)

    @torch.no_grad()
    def observations(self) -> torch.Tensor:
        """Return what the network saw at steps 0 .. T-1, [T, N, ...], in the dtype of observations."""
        seen = (self._chain.observations if self._given is None else self._given)[: self._rows]
        if self._chain.words and self._given is None:
            seen = self._chain.words.unfold(seen)
        return seen.to(self._dtype).reshape(*self._grid, *self._network.spaces.observation_shape)
