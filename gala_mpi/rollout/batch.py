"""A rollout, as a learner sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Batch:
    """A rollout. Tensors are [T, N] float32."""

    log_probs: torch.Tensor  # log π(a_t | s_t), with gradient
    entropies: torch.Tensor  # H(π(· | s_t)), with gradient
    values: torch.Tensor  # V(s_t), with gradient
    rewards: torch.Tensor  # r_t as the learner sees them; γ V(cut-off observation) added where an episode was truncated
    discounts: torch.Tensor  # γ, or 0 where the return ends
    next_values: torch.Tensor  # V(s_{t+1}), without gradient
    written: Sequence[nn.Parameter] = ()  # whose gradient the backward pass writes, whatever was there
