"""A rollout's forward passes, kept for its backward pass.

Parameters do not change within a rollout, so the passes that chose the actions are the ones that A2C differentiates: there
is no second forward pass. Activations of all T passes lie in buffers made once, so that the backward pass is one pass over
T · N rows instead of T passes over N, and nothing large is allocated.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Pair = tuple[nn.Conv2d | nn.Linear, nn.Module]  # a layer and its activation


class Kept:
    """The activations of T + 1 forward passes (the last one bootstraps) of N rows through a torso.

    Args:
        torso: convolutions and linear layers, each followed by a ReLU or a Tanh.
        steps: T.
        inputs: what one pass takes, [N, ...]; only its shape and device are used.
        dtype: of the computation; gradients are handed to the parameters in their own.
        between: called between the layers of a backward pass, which is the longest time without anything else.
    """

    def __init__(
        self,
        torso: nn.Sequential,
        steps: int,
        inputs: torch.Tensor,
        dtype: torch.dtype,
        between: Callable[[], None] = lambda: None,
    ):
        self._pairs = pairs(torso)
        self._batch, self._rows, self.dtype = len(inputs), steps * len(inputs), dtype
        self._between = between
        self._activations = [_buffer(inputs, steps + 1, dtype)]
        with torch.no_grad():
            x = torch.zeros_like(inputs, dtype=torch.float32)
            for layer, activation in self._pairs:
                x = activation(_apply(layer, x, layer.weight, layer.bias))
                self._activations.append(_buffer(x, steps + 1, dtype))

    @torch.no_grad()
    def begin(self) -> None:
        """A new rollout: take the parameters as they are now."""
        self._weights = [(layer.weight.to(self.dtype), layer.bias.to(self.dtype)) for layer, _ in self._pairs]

    def inputs(self, step: int) -> torch.Tensor:
        """Where the input of pass `step` is to be written, [N, ...]."""
        return self._part(0, step)

    @torch.no_grad()
    def forward(self, step: int) -> torch.Tensor:
        """Pass `step` of 0 .. T over what `inputs(step)` holds: features [N, F]."""
        x = self._part(0, step)
        for depth, ((layer, activation), weights) in enumerate(zip(self._pairs, self._weights), 1):
            out = self._part(depth, step)
            y = _apply(layer, x, *weights)
            x = torch.tanh(y, out=out) if isinstance(activation, nn.Tanh) else torch.clamp_min(y, 0, out=out)
        return x

    def features(self) -> torch.Tensor:
        """The features of passes 0 .. T-1, [T · N, F], whose gradient goes to the torso's parameters."""
        parameters = [parameter for layer, _ in self._pairs for parameter in (layer.weight, layer.bias)]
        return _Features.apply(self, *parameters)

    def _part(self, depth: int, step: int) -> torch.Tensor:
        return self._activations[depth][step * self._batch : (step + 1) * self._batch]

    def backward(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """The gradient of the features, [T · N, F] → those of every layer's weight and bias, in order."""
        gradients: list[torch.Tensor] = []
        for depth in reversed(range(len(self._pairs))):
            layer, activation = self._pairs[depth]
            x, y = (self._activations[at][: self._rows] for at in (depth, depth + 1))
            derive = torch.ops.aten.tanh_backward if isinstance(activation, nn.Tanh) else _relu_backward
            gradient = derive(gradient.reshape(y.shape), y)
            gradient, *own = _layer_backward(layer, gradient, x, self._weights[depth][0], further=depth > 0)
            gradients[:0] = own
            self._between()
        return gradients


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx, kept: Kept, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.kept = kept
        return kept._activations[-1][: kept._rows].float()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return None, *(own.float() for own in ctx.kept.backward(gradient.to(ctx.kept.dtype)))


def pairs(torso: nn.Sequential) -> list[Pair]:
    """(layer, activation) in order; a Flatten between them only reshapes and is left out."""
    layers = [layer for layer in torso if not isinstance(layer, nn.Flatten)]
    return list(zip(layers[::2], layers[1::2]))


def _buffer(one: torch.Tensor, passes: int, dtype: torch.dtype) -> torch.Tensor:
    """Room for `passes` tensors like `one`, behind each other; images channels last, as convolutions read them fastest."""
    room = torch.zeros((passes * len(one), *one.shape[1:]), dtype=dtype, device=one.device)
    return room.contiguous(memory_format=torch.channels_last) if room.dim() == 4 else room


def _apply(layer: nn.Conv2d | nn.Linear, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride)
    return F.linear(x.flatten(1), weight, bias)


def _relu_backward(gradient: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.ops.aten.threshold_backward(gradient, y, 0)


def _layer_backward(
    layer: nn.Conv2d | nn.Linear, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, further: bool
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Gradients of the layer's input (None unless `further`), weight and bias."""
    if isinstance(layer, nn.Linear):
        below = gradient @ weight if further else None
        return below, gradient.T @ x.flatten(1), gradient.sum(0)
    nothing = [0, 0]
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, [layer.out_channels], layer.stride, nothing, [1, 1], False, nothing, 1, [further, True, True]
    )
