"""The outer step: agents go on from their mean by a step with momentum (SlowMo, Wang et al.; DiLoCo, Douillard et al. 2023).

What all agents together have moved since the last outer step is the gradient of a step with Nesterov's momentum.
"""

from __future__ import annotations

import numpy as np
import torch

LR = 0.7  # of Douillard et al., beside momentum 0.9


class OuterStep:
    """Momentum from one mean of all agents to the next. The first mean is taken as it is, so that all begin alike.

    Args:
        momentum: μ, in [0, 1).
        lr: the outer learning rate η. With μ = 0 and η = 1 agents go on from the mean itself.
    """

    def __init__(self, momentum: float, lr: float):
        self._momentum, self._lr = momentum, lr
        self._last: torch.Tensor | None = None  # what the last outer step led to
        self._velocity: torch.Tensor | None = None

    def __call__(self, mean: torch.Tensor) -> None:
        """Replace a mean over all agents, float32 [P], by what they go on from: d ← x − mean, v ← μ v + d, x ← x − η (d + μ v),
        with x of the last call."""
        if self._last is None or self._velocity is None:
            self._last, self._velocity = mean.clone(), torch.zeros_like(mean)
            return
        moved = self._last - mean
        self._velocity.mul_(self._momentum).add_(moved)
        self._last.sub_(moved.add_(self._velocity, alpha=self._momentum), alpha=self._lr)
        mean.copy_(self._last)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of what a resume needs, float32 [P] each; empty before the first mean."""
        if self._last is None or self._velocity is None:
            return {}
        return {"outer_last": self._last.cpu().numpy().copy(), "outer_velocity": self._velocity.cpu().numpy().copy()}

    def load(self, state: dict[str, np.ndarray], like: torch.Tensor) -> None:
        """Take in what `state` returned; without it the next mean is the first.

        Args:
            state: may hold more.
            like: a vector on the device.
        """
        if "outer_last" in state:
            self._last, self._velocity = (
                torch.from_numpy(state[name]).to(like.device, copy=True) for name in ("outer_last", "outer_velocity")
            )
