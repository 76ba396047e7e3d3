"""A2C: loss → gradient; clip; RMSprop. Its state is two flat vectors and two counters.

A learner has `flat`, `updates`, `steps`, `gradient(batch)`, `count(steps)`, `step(progress)`, `step_norm`, `state()` and
`load(state)`: another algorithm that has them (PPO, V-trace) stands beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from gala_mpi.flat import Flat
from gala_mpi.learners.returns import lambda_returns
from gala_mpi.learners.settings import A2CSettings
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.batch import Batch


class A2C:
    """Advantage actor-critic (Mnih et al. 2016) with the GALA paper's constants.

    Args:
        network: its parameters become views of `flat.data`.
        settings: discount, coefficients, optimiser constants.
        lr: the learning rate at the start.

    Attributes:
        step_norm: the length of the last step, learning rate included.
    """

    def __init__(self, network: Network, settings: A2CSettings, lr: float):
        self.network, self.settings, self.lr = network, settings, lr
        self.flat = Flat(network)
        self.square_average = torch.zeros_like(self.flat.data)
        self._far = torch.tensor(1e9, device=self.flat.data.device)  # steps from Adam's start
        self._before: torch.Tensor | None = None  # room for what a step in place began with
        self.updates = 0
        self.steps = 0
        self.step_norm = 0.0

    def gradient(self, batch: Batch) -> torch.Tensor:
        """The gradient of the loss into `flat.grad`. Operations on the device alone, so that they can be replayed.

        Returns:
            The terms of the loss, float32 [3]: see Losses.
        """
        returns = lambda_returns(batch.rewards, batch.discounts, batch.next_values, self.settings.gae_lambda)
        advantages = returns - batch.values
        policy = -(advantages.detach() * batch.log_probs).mean()
        value = advantages.pow(2).mean()
        entropy = batch.entropies.mean()
        self._clear(batch.written)
        loss = policy + self.settings.value_coefficient * value - self.settings.entropy_coefficient * entropy
        loss.backward()
        return torch.stack([policy, value, entropy]).detach()

    def count(self, steps: int) -> None:
        """One more update, of so many steps."""
        self.updates += 1
        self.steps += steps

    def _clear(self, written: Sequence[nn.Parameter]) -> None:
        """Zeros in place of the gradients, but for those that will be written: nearly all of the vector."""
        for parameter in self.network.parameters():
            if not any(parameter is other for other in written):
                parameter.grad.zero_()

    def step(self, progress: float, into: torch.Tensor | None = None) -> float:
        """Clip `flat.grad`, one RMSprop step from `flat.data`; the gradient's norm before clipping.

        RMSprop is Adam without momentum (β1 = 0) and far from its start, where no bias is left to correct. Torch has that
        one as a fused pass over the vectors, scaling of the gradient included; a vector operation for each term of
        torch.optim.RMSprop takes three times as long. The momentum is the gradient itself, which is in its place already.

        Args:
            progress: share of the run's global steps that are done, in [0, 1]; the learning rate's decay goes by it.
            into: where the new parameters go, float32 [P]; `flat.data` then is to be set by who gave it. Without it they go
                into `flat.data`.
        """
        settings = self.settings
        norm = torch.linalg.vector_norm(self.flat.grad)
        before, after = self._from_and_to(into)
        torch._fused_adam_(
            [after],
            [self.flat.grad],
            [self.flat.grad],
            [self.square_average],
            [],
            [self._far],
            lr=self.lr * (1 - progress if settings.decay_lr else 1),
            beta1=0.0,
            beta2=settings.rms_alpha,
            weight_decay=0.0,
            eps=settings.rms_eps,
            amsgrad=False,
            maximize=False,
            grad_scale=(norm / settings.max_grad_norm).clamp_min(1),  # what the gradient is divided by
        )
        moved = torch.linalg.vector_norm(torch.sub(after, before, out=before))
        grad_norm, self.step_norm = torch.stack([norm, moved]).tolist()
        return grad_norm

    def _from_and_to(self, into: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The parameters twice, of which one is there only to tell the length of the step."""
        if into is not None:
            return self.flat.data, into.copy_(self.flat.data)
        if self._before is None:
            self._before = torch.empty_like(self.flat.data)
        return self._before.copy_(self.flat.data), self.flat.data

    def state(self) -> dict[str, np.ndarray]:
        """Everything that a resume needs of the learner: `parameters`, `square_average` (float32 [P]) and counters."""
        return {
            "parameters": self.flat.data.cpu().numpy().copy(),
            "square_average": self.square_average.cpu().numpy().copy(),
            "updates": np.int64(self.updates),
            "steps": np.int64(self.steps),
        }

    def load(self, state: dict[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        self.flat.data.copy_(torch.from_numpy(state["parameters"]))
        self.updates, self.steps = int(state["updates"]), int(state["steps"])
        self.square_average.copy_(torch.from_numpy(state["square_average"]))
