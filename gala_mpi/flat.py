"""One float32 vector of all parameters of a network, and one of all gradients.

A message, an all-reduce, a checkpoint and an optimiser step are then one operation on one array each, while the network
still sees ordinary parameters, which are views.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import nn

from gala_mpi.networks import statistics


class Part(NamedTuple):
    """A part of the two vectors: views, float32."""

    data: torch.Tensor
    grad: torch.Tensor


class Flat:
    """The flat parameters and gradients of a network.

    The network's parameters and their gradients become views of the two vectors.

    Attributes:
        data: all parameters, float32 [P], on the network's device.
        grad: all gradients, likewise.
        table: of every parameter, in the order of the vector: `name` (as in the network's state_dict), `shape`, `offset` of
            its first element, and `order`: its dimensions as they lie in the vector, slowest first. So
            `data[offset:][:size].view([shape[d] for d in order])` is the parameter with its dimensions in that order.
        learnt: of the two vectors what an optimiser works on.
        counted: what lies behind it: the last parameters, if they are statistics. Their `grad` is what an update adds to them.
            Most networks have none.
    """

    def __init__(self, network: nn.Module):
        parameters = dict(network.named_parameters())
        device = next(iter(parameters.values())).device
        size = sum(parameter.numel() for parameter in parameters.values())
        self.data = torch.empty(size, device=device)
        self.grad = torch.zeros(size, device=device)
        self.table: list[dict[str, Any]] = []
        offset = 0
        for name, parameter in parameters.items():
            end, order = offset + parameter.numel(), _order(parameter)
            self.table.append({"name": name, "shape": list(parameter.shape), "offset": offset, "order": order})
            view = _like(self.data[offset:end], parameter, order)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = _like(self.grad[offset:end], parameter, order)
            offset = end
        counted = statistics.parameters_of(network)
        tail = itertools.takewhile(lambda parameter: id(parameter) in counted, reversed(parameters.values()))
        learnt = size - sum(parameter.numel() for parameter in tail)
        self.learnt = Part(self.data[:learnt], self.grad[:learnt])
        self.counted = Part(self.data[learnt:], self.grad[learnt:])

    def __len__(self) -> int:
        return len(self.data)


def _order(parameter: nn.Parameter) -> list[int]:
    """Return the dimensions of a parameter as they are to lie in memory, slowest first.

    4-d weights [out, in, height, width] are laid channels last, which the CPU's convolutions read fastest.
    """
    return [0, 2, 3, 1] if parameter.dim() == 4 else list(range(parameter.dim()))


def _like(segment: torch.Tensor, parameter: nn.Parameter, order: list[int]) -> torch.Tensor:
    """View `segment` in the shape of `parameter`, whose dimensions lie in memory in this order."""
    laid = segment.view([parameter.shape[dimension] for dimension in order])
    return laid.permute([order.index(dimension) for dimension in range(parameter.dim())])
