"""What every learner is."""

from __future__ import annotations

from typing import NamedTuple


class Losses(NamedTuple):
    """Means over a batch, as in the loss: policy + value_coefficient · value − entropy_coefficient · entropy."""

    policy: float
    value: float
    entropy: float
