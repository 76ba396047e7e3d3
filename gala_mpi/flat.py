"""One float32 vector of all parameters of a network, and one of all gradients.

A message, an all-reduce, a checkpoint and an optimiser step are then one operation on one array each, while the network
still sees ordinary parameters, which are views.
"""

from __future__ import annotations

import torch
from torch import nn


class Flat:
    """The flat parameters and gradients of a network.

    The network's parameters and their gradients become views of the two vectors.

    Attributes:
        data: all parameters, float32 [P], on the network's device.
        grad: all gradients, likewise.
    """

    def __init__(self, network: nn.Module):
        parameters = list(network.parameters())
        device = parameters[0].device
        size = sum(parameter.numel() for parameter in parameters)
        self.data = torch.empty(size, device=device)
        self.grad = torch.zeros(size, device=device)
        offset = 0
        for parameter in parameters:
            end = offset + parameter.numel()
            view = _like(self.data[offset:end], parameter)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = _like(self.grad[offset:end], parameter)
            offset = end

    def __len__(self) -> int:
        return len(self.data)


def _like(segment: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Return a view of `segment` in the shape of `parameter`.

    4-d weights are laid out channels_last, which the CPU's convolutions read fastest.
    """
    if parameter.dim() != 4:
        return segment.view(parameter.shape)
    out, channels, height, width = parameter.shape
    return segment.view(out, height, width, channels).permute(0, 3, 1, 2)
