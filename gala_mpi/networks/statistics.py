"""Running statistics of numbers, as sums that are parameters of a network without a gradient.

What becomes of parameters becomes of them: they are shared, saved and loaded. Sums of several agents average as parameters
do: the mean and the variance by the averaged sums are those of all that the agents have counted, each by how much it has.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

EPSILON = 1e-8  # added to a variance
BOUND = 10.0  # beyond it scaled numbers are clipped
SMALLEST_SHARE = 1e-5  # of a variance in the square of the distance between mean and offset: float32's sums tell no smaller one
LARGEST = 1e12  # numbers that are farther from the offset count as so far, or the sums of squares would overflow

Numbers = TypeVar("Numbers", torch.Tensor, np.ndarray)


class Scaling(NamedTuple, Generic[Numbers]):
    """What becomes of numbers, by their statistics: clip((x - mean) · factor, ±bound). All are tensors, or all arrays.

    Attributes:
        mean: float32 [size].
        factor: one over the standard deviation, float32 [size].
        bound: float32 [1].
    """

    mean: Numbers
    factor: Numbers
    bound: Numbers

    def __call__(self, numbers: Numbers) -> Numbers:
        """Scale float32 [N, size]."""
        scaled: Any = (numbers - self.mean) * self.factor
        return scaled.clip(-self.bound, self.bound)


class Sums(nn.Module):
    """How many rows of numbers have been counted, the sums of the numbers, and of their squares. All float32.

    Args:
        size: how many numbers a row has.

    Attributes:
        count: [1].
        offset: what is taken from a number before it is summed, [size]. It is the same on all agents, and stays as it is.
            Where the numbers are large and differ by little, their own squares would leave no digit for the variance.
        sum, squares: [size].
    """

    def __init__(self, size: int):
        super().__init__()
        self.count, self.offset, self.sum, self.squares = (_zeros(length) for length in (1, size, size, size))

    def centre(self, offset: np.ndarray) -> None:
        """Set the offset, about `offset` ([size]): before anything is counted.

        It is rounded to 16 bits, so that sums over up to 256 agents are exact, and means of equal offsets equal to them.
        """
        digits, exponent = np.frexp(np.clip(offset, -LARGEST, LARGEST))
        self.offset.copy_(torch.from_numpy(np.ldexp(np.rint(digits * 2**16), exponent - 16)))

    @torch.no_grad()
    def scaling(self) -> Scaling:
        """Return how numbers are scaled to mean 0 and variance 1; before anything is counted they stay as they are.

        Only operations on the device, and no look at a number.
        """
        nothing = self.count <= 0
        count = self.count.double().masked_fill(nothing, 1)
        shift = self.sum.double() / count
        # What lies so far from its offset that rounding is all that is left of the variance becomes small, not large.
        variance = (self.squares.double() / count - shift.square()).clamp_min(SMALLEST_SHARE * shift.square())
        mean, factor = self.offset.double() + shift, (variance + EPSILON).rsqrt()
        bound = torch.full_like(self.count, BOUND).masked_fill(nothing, torch.inf)
        return Scaling(mean.masked_fill(nothing, 0).float(), factor.masked_fill(nothing, 1).float(), bound)


def parameters_of(network: nn.Module) -> set[int]:
    """Return the ids of a network's parameters that are statistics."""
    return {id(each) for module in network.modules() if isinstance(module, Sums) for each in module.parameters()}


def _zeros(length: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(length), requires_grad=False)
