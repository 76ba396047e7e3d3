"""Optimisers of one flat vector: clip the gradient, step, and say how long both were. A few fused passes over the vectors.

torch has Adam's step as one such pass, scaling of the gradient included; torch.optim's RMSprop, a vector operation for each
term, takes three times as long. Both optimisers here go through that pass.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from gala_mpi.learners.settings import LearnerSettings

State = dict[str, Any]  # vectors float32, and counters


class Step(NamedTuple):
    """How long the gradient was before it was clipped, and how long the step, learning rate included.

    Where the gradient's is not finite, no step was taken. The step's is, unless the parameters were not: see `Optimiser.step`.
    """

    grad_norm: float
    step_norm: float

    @property
    def taken(self) -> bool:
        return math.isfinite(self.grad_norm) and math.isfinite(self.step_norm)


class Optimiser(Protocol):
    """What a learner asks of an optimiser. Vectors are float32 [P], on one device."""

    name: str

    def step(
        self, grad: torch.Tensor, data: torch.Tensor, lr: float, max_norm: float, into: torch.Tensor | None = None
    ) -> Step:
        """Scale `grad` down in place to a length of `max_norm` at most, and go one step from `data`.

        Where the gradient's length is not finite, neither the parameters nor the optimiser's state change. A step itself does
        not overflow: whatever the gradient, it moves no parameter by more than some multiple of the learning rate, which has a
        bound (config_checks.py).

        Args:
            lr: learning rate.
            into: where the new parameters go; `data` then means nothing afterwards, and is for the caller to set. None: they
                go into `data`.
        """
        ...

    def state(self) -> State:
        """Return copies of all that a resume needs: vectors float32 [P], and counters."""
        ...

    def load(self, state: State) -> None:
        """Take in what `state` returned."""


class _Fused:
    """A step by torch's fused Adam.

    Args:
        like: a vector of the parameters' length, on their device.
    """

    def __init__(self, like: torch.Tensor):
        self.square_average = torch.zeros_like(like)
        self._before: torch.Tensor | None = None  # room for what a step in place began with

    def _step(
        self,
        grad: torch.Tensor,
        data: torch.Tensor,
        max_norm: float,
        into: torch.Tensor | None,
        average: torch.Tensor,
        steps: torch.Tensor,
        *,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
    ) -> Step:
        norm = torch.linalg.vector_norm(grad)  # NaN or infinite if any of its numbers is
        before, after = self._from_and_to(data, into)
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]  # torch.optim.Adam calls it too, and does more
            [after],
            [grad],
            [average],
            [self.square_average],
            [],
            [steps],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
            grad_scale=(norm / max_norm).clamp_min(1),  # what the gradient is divided by
            found_inf=torch.isfinite(norm).logical_not().float(),  # 1: nothing is done
        )
        moved = torch.linalg.vector_norm(torch.sub(after, before, out=before))
        return Step(*torch.stack([norm, moved]).tolist())

    def _from_and_to(self, data: torch.Tensor, into: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the parameters twice, of which one is there only to tell the length of the step."""
        if into is not None:
            return data, into.copy_(data)
        if self._before is None:
            self._before = torch.empty_like(data)
        return self._before.copy_(data), data


class RMSprop(_Fused):
    """RMSprop (Tieleman & Hinton 2012; as torch.optim.RMSprop, ε added to the root).

    It is Adam without momentum (β1 = 0) and far from its start, where no bias is left to correct. The momentum is the
    gradient itself, which is in its place already.

    Args:
        like: a vector of the parameters' length, on their device.
        alpha: decay of the running mean of squared gradients.
        eps: ε.
    """

    name = "rmsprop"

    def __init__(self, like: torch.Tensor, alpha: float, eps: float):
        super().__init__(like)
        self._constants = {"beta1": 0.0, "beta2": alpha, "eps": eps}
        self._far = torch.tensor(1e9, device=like.device)  # steps from Adam's start

    def step(
        self, grad: torch.Tensor, data: torch.Tensor, lr: float, max_norm: float, into: torch.Tensor | None = None
    ) -> Step:
        return self._step(grad, data, max_norm, into, grad, self._far, lr=lr, **self._constants)

    def state(self) -> State:
        return {"square_average": self.square_average.cpu().numpy().copy()}

    def load(self, state: State) -> None:
        self.square_average.copy_(torch.from_numpy(state["square_average"]))


class Adam(_Fused):
    """Adam (Kingma & Ba 2015, algorithm 1).

    Args:
        like: a vector of the parameters' length, on their device.
        beta1: decay of the running mean of gradients.
        beta2: decay of the running mean of squared gradients.
        eps: ε, added to the root.
    """

    name = "adam"

    def __init__(self, like: torch.Tensor, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        super().__init__(like)
        self._constants = {"beta1": beta1, "beta2": beta2, "eps": eps}
        self.average = torch.zeros_like(like)
        self.steps = torch.zeros((), device=like.device)

    def step(
        self, grad: torch.Tensor, data: torch.Tensor, lr: float, max_norm: float, into: torch.Tensor | None = None
    ) -> Step:
        self.steps += 1
        step = self._step(grad, data, max_norm, into, self.average, self.steps, lr=lr, **self._constants)
        if not math.isfinite(step.grad_norm):
            self.steps -= 1
        return step

    def state(self) -> State:
        return {
            "average": self.average.cpu().numpy().copy(),
            "square_average": self.square_average.cpu().numpy().copy(),
            "optimiser_steps": np.int64(self.steps.item()),
        }

    def load(self, state: State) -> None:
        self.average.copy_(torch.from_numpy(state["average"]))
        self.square_average.copy_(torch.from_numpy(state["square_average"]))
        self.steps.fill_(int(state["optimiser_steps"]))


def make(settings: LearnerSettings, like: torch.Tensor) -> Optimiser:
    """Return the optimiser that the settings name, for vectors like this one."""
    if settings.optimiser == "adam":
        return Adam(like, eps=settings.adam_eps)
    return RMSprop(like, settings.rms_alpha, settings.rms_eps)
