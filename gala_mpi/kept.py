"""A rollout's forward passes, kept for its backward pass.

Parameters do not change within a rollout, so the passes that chose the actions are the ones that A2C differentiates: there
is no second forward pass. Observations (still bytes) and activations of all passes lie in buffers made once. The backward
pass goes over them in parts that fit a core's cache, writes over what it has read, and puts the parameters' gradients where
they lie: large blocks that are allocated anew have no pages yet, and getting those took a tenth of an update.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from gala_mpi.model import Flatten, Network

PART_BYTES = 1 << 20  # of the largest activations that the backward pass works on at a time: what a core's cache holds

Pair = tuple[nn.Conv2d | nn.Linear, nn.Module]  # a layer and its activation


class Kept:
    """The observations and activations of the forward passes of T + 1 steps (the last one bootstraps) through a torso.

    Args:
        network: its torso is convolutions, then linear layers, each followed by a ReLU or a Tanh. Its parameters must have
            a `grad` (see `flat.py`) when a gradient comes.
        steps: T.
        observations: what one pass sees, [N, ...]; only its shape, dtype and device are used.
        turns: how many passes make a step, each over N other rows.
        between: called between the layers of a backward pass, which is the longest time without anything else.
    """

    def __init__(
        self,
        network: Network,
        steps: int,
        observations: torch.Tensor,
        turns: int = 1,
        between: Callable[[], None] = lambda: None,
    ):
        self._pairs, self._dtype, self._between = pairs(network.torso), network.dtype, between
        # Observations go in as they are, the first layer's weights are scaled instead: pixels are exact in bfloat16.
        self._scale = network.scale
        self._batch, self._rows, passes = len(observations), steps * turns * len(observations), (steps + 1) * turns
        self._weights = [
            (layer.weight, layer.bias) if depth and self._dtype == layer.weight.dtype else _copies(layer, self._dtype)
            for depth, (layer, _) in enumerate(self._pairs)
        ]
        self._observations = _buffer(observations, passes, observations.dtype)
        self._activations = []
        with torch.no_grad():
            x = torch.zeros_like(observations, dtype=torch.float32)
            for layer, activation in self._pairs:
                x = activation(_apply(layer, x, layer.weight, layer.bias))
                self._activations.append(_buffer(x, passes, self._dtype))
        row = max(activations[0].nbytes for activations in self._activations)
        self._convolutions = sum(isinstance(layer, nn.Conv2d) for layer, _ in self._pairs)
        in_parts = self._convolutions and observations.device.type == "cpu"  # the linear layers take all rows at a time
        at_once = max(self._batch, PART_BYTES // row) if in_parts else self._rows
        self._parts = [slice(at, min(at + at_once, self._rows)) for at in range(0, self._rows, at_once)]
        self._converted = _buffer(observations[:1], min(at_once, self._rows), self._dtype)

    @torch.no_grad()
    def begin(self) -> None:
        """A new rollout: take the parameters as they are now."""
        for (layer, _), (weight, bias) in zip(self._pairs, self._weights):
            if weight is not layer.weight:
                weight.copy_(layer.weight)
                bias.copy_(layer.bias)
        self._weights[0][0].mul_(self._scale)

    @torch.no_grad()
    def forward(self, number: int, observations: torch.Tensor) -> torch.Tensor:
        """Pass `number` (step by step, turn by turn, from 0 on) over what is seen now, [N, ...]: features [N, F]."""
        rows = slice(number * self._batch, (number + 1) * self._batch)
        _copy(observations, self._observations[rows])
        x = self._input(rows)
        for (layer, activation), weights, outputs in zip(self._pairs, self._weights, self._activations):
            y, out = _apply(layer, x, *weights), outputs[rows]
            x = torch.tanh(y, out=out) if isinstance(activation, nn.Tanh) else torch.clamp_min(y, 0, out=out)
        return x

    def features(self) -> torch.Tensor:
        """The features of steps 0 .. T-1, float32 [T · turns · N, F]. Their gradient goes on to the torso's parameters."""
        features = self._activations[-1][: self._rows].float().requires_grad_()
        features.register_hook(self._backward)
        return features

    def _input(self, rows: slice) -> torch.Tensor:
        """What the first layer takes of these rows; overwritten by the next call."""
        return self._converted[: rows.stop - rows.start].copy_(self._observations[rows])

    @torch.no_grad()
    def _backward(self, gradient: torch.Tensor) -> None:
        """The gradient of the features, [T · turns · N, F], on to the `grad` of every layer's weight and bias.

        Those of convolutions and biases are added; those of linear layers' weights, which are the largest, are written.
        """
        gradient = gradient.to(self._dtype, copy=True)  # the original is not ours to write over
        gradient = self._descend(range(self._convolutions, len(self._pairs)), gradient, slice(0, self._rows))
        for rows in self._parts if self._convolutions else ():
            self._descend(range(self._convolutions), gradient[rows], rows)

    def _descend(self, depths: range, gradient: torch.Tensor, rows: slice) -> torch.Tensor | None:
        """The gradient of some rows' activations above the layers `depths` → of those below them (None below the first)."""
        for depth in reversed(depths):
            layer, activation = self._pairs[depth]
            x = self._activations[depth - 1][rows] if depth else self._input(rows)
            y = self._activations[depth][rows]
            gradient = _images(gradient, y) if gradient.dim() < y.dim() else gradient
            if isinstance(activation, nn.Tanh):
                torch.ops.aten.tanh_backward.grad_input(gradient, y, grad_input=gradient)
            else:
                torch.ops.aten.threshold_backward.grad_input(gradient, y, 0, grad_input=gradient)
            weight, scale = self._weights[depth][0], 1.0 if depth else self._scale
            gradient = _layer_backward(layer, gradient, x, weight, scale, further=depth > 0)
            self._between()
        return gradient


def pairs(torso: nn.Sequential) -> list[Pair]:
    """(layer, activation) in order; a Flatten between them only reshapes and is left out."""
    layers = [layer for layer in torso if not isinstance(layer, Flatten)]
    return list(zip(layers[::2], layers[1::2]))


def _buffer(one: torch.Tensor, passes: int, dtype: torch.dtype) -> torch.Tensor:
    """Room for `passes` tensors like `one`, behind each other; images channels last, as convolutions read them fastest."""
    room = torch.zeros((passes * len(one), *one.shape[1:]), dtype=dtype, device=one.device)
    return room.contiguous(memory_format=torch.channels_last) if room.dim() == 4 else room


def _copies(layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.weight.detach().to(dtype, copy=True), layer.bias.detach().to(dtype, copy=True)


def _copy(observations: torch.Tensor, room: torch.Tensor) -> None:
    """Planes before pixels → channels last is fastest plane by plane."""
    if observations.dim() == 4:
        for plane, channel in zip(observations.unbind(1), room.unbind(1)):
            channel.copy_(plane)
    else:
        room.copy_(observations)


def _apply(layer: nn.Conv2d | nn.Linear, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, nn.Conv2d):
        return F.conv2d(x, weight, bias, layer.stride)
    return torch.addmm(bias[:, None], weight, _rows(x).T).T  # in bfloat16 a third faster than F.linear


def _rows(x: torch.Tensor) -> torch.Tensor:
    return Flatten()(x) if x.dim() == 4 else x


def _images(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `_rows`, in the shape of `like`."""
    channels, height, width = like.shape[1:]
    return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)


def _layer_backward(
    layer: nn.Conv2d | nn.Linear, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: float, further: bool
) -> torch.Tensor | None:
    """Add to the gradients of the layer's weight and bias; write that of a linear layer's weight, which has all rows here.

    Args:
        weight: the layer's, `scale` times as large (1 for a linear layer). A copy may be written over.

    Returns:
        The gradient of the layer's input, None unless `further`.
    """
    if isinstance(layer, nn.Linear):
        below = gradient @ weight if further else None
        if weight.dtype == layer.weight.dtype:
            torch.mm(gradient.T, _rows(x), out=layer.weight.grad)
        else:
            layer.weight.grad.copy_(torch.mm(gradient.T, _rows(x), out=weight))
        layer.bias.grad.add_(gradient.sum(0))
        return below
    nothing = [0, 0]
    below, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient, x, weight, [layer.out_channels], layer.stride, nothing, [1, 1], False, nothing, 1, [further, True, True]
    )
    layer.weight.grad.add_(of_weight, alpha=scale)
    layer.bias.grad.add_(of_bias)
    return below
