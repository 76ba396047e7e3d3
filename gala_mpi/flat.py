"""One float32 vector behind a network's parameters and one behind its gradients.

A message, an all-reduce, a checkpoint and an optimiser step are then each one operation on one array, while the network
still sees ordinary parameters: they are views.
"""

from __future__ import annotations

import torch
from torch import nn


class Flat:
    """The vectors `data` and `grad` (float32 [P], on the network's device) that a network's parameters are views of."""

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
    """`segment` in the shape of `parameter`; 4-d weights are laid channels_last, which the CPU's convolutions read fastest."""
    if parameter.dim() != 4:
        return segment.view(parameter.shape)
    out, channels, height, width = parameter.shape
    return segment.view(out, height, width, channels).permute(0, 3, 1, 2)
