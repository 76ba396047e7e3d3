"""A plain encoder by kernels: its layers, and room for what some rows are in each of them, forward and backward.

The backward pass goes over convolutions in parts that fit a core's cache, writes over what it has read, and puts the
parameters' gradients where they lie: large blocks that are allocated anew have no pages yet, and getting those took a tenth of
an update. For small layers there is none of autograd's overhead, which is longer than they are.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import nn

from gala_mpi.networks import statistics
from gala_mpi.networks.encoders import Apart, Flatten
from gala_mpi.networks.policy import Network
from gala_mpi.rollout.kernels import Convolution, Linear, copy_planes, copy_words, images, rows_of

PART_BYTES = 1 << 21  # of the largest activations that are worked on at a time: about what a core's cache holds


def chains(network: Network) -> list[nn.Sequential]:
    """Return the chains of layers that a network's encoder is: one, or one of the policy and one of the value. Empty: it is
    something else.

    A chain is convolutions without padding (images have one at least), then linear layers, one at least, each followed by a
    ReLU or a Tanh. Behind those of a policy and a value there is one more linear layer, their head.
    """
    encoder, spaces = network.encoder, network.spaces
    if type(network) is not Network or spaces.masked or network.memory is not None:  # of masks the heads must know
        return []
    apart = type(encoder) is Apart
    found = [encoder.policy, encoder.value] if apart else [encoder]
    kinds = f"{'(Ca)+F' if spaces.image else ''}(La)+{'L' if apart else ''}"
    counted = statistics.parameters_of(network)
    learnt = all(parameter.requires_grad for parameter in network.parameters() if id(parameter) not in counted)
    return found if learnt and all(_is_chain(each, kinds) for each in found) else []


def _is_chain(encoder: nn.Module, kinds: str) -> bool:
    if type(encoder) is not nn.Sequential:
        return False
    layers = [module for module in encoder if isinstance(module, (nn.Conv2d, nn.Linear))]
    return (
        re.fullmatch(kinds, "".join(_LETTERS.get(type(module), "?") for module in encoder)) is not None
        and len(set(map(id, layers))) == len(layers)
        and all(layer.bias is not None for layer in layers)
        and all(_is_plain(layer) for layer in layers if isinstance(layer, nn.Conv2d))
    )


_LETTERS = {nn.Conv2d: "C", nn.Linear: "L", Flatten: "F", nn.ReLU: "a", nn.Tanh: "a"}


def _is_plain(layer: nn.Conv2d) -> bool:
    return (layer.padding, layer.dilation, layer.groups) == ((0, 0), (1, 1), 1)


def pairs(encoder: nn.Sequential) -> list[tuple[nn.Conv2d | nn.Linear, nn.Module | None]]:
    """Return (layer, activation function) in order, None behind a head; a Flatten only reshapes and is left out."""
    layers = [layer for layer in encoder if not isinstance(layer, Flatten)]
    return cast(list, list(itertools.zip_longest(layers[::2], layers[1::2])))


class Cut(NamedTuple):
    """Some of a chain's rows, cut out of its memory once: a view takes as long as a small layer.

    Attributes:
        laid_out: room for observations as they come, laid out for the first layer.
        observations: room for them as the first layer takes them.
        layers: the forward pass of each layer, with its activation function.
        features: what the last layer gives.
    """

    laid_out: torch.Tensor
    observations: torch.Tensor
    layers: list[Callable[[], None]]
    features: torch.Tensor


class Chain:
    """A chain of layers (see `chains`), and room for observations and activations of some rows.

    Args:
        encoder: its parameters must have a `grad` (see `flat.py`) when a gradient comes.
        dtype: of the computation.
        scale: what observations are multiplied by.
        observation: one, [1, ...]; only its shape, dtype and device are used.
        rows: for how many there is room.
        at_once: how many come at a time. None: as many as are worked on at a time.
        between: called between the layers of a backward pass, which is the longest time without anything else.

    Attributes:
        at_once: how many rows of the activations of convolutions are worked on at a time.
        words: the first layer, where images come to it folded.
        observations: what it sees, in `dtype`, laid out as it takes them.
        features: what the last layer gives, [rows, F].
        written: the parameters whose gradients a backward pass writes: linear layers'. To those of convolutions it adds.
    """

    def __init__(
        self,
        encoder: nn.Sequential,
        dtype: torch.dtype,
        scale: float,
        observation: torch.Tensor,
        rows: int,
        at_once: int | None = None,
        between: Callable[[], None] = lambda: None,
    ):
        self._dtype, self._between = dtype, between
        # Observations go in as they are, the first layer's weights are scaled instead: pixels are exact in bfloat16.
        seen = observation
        self._layers: list[Convolution | Linear] = []
        self._functions: list[nn.Module | None] = []
        self._activations: list[torch.Tensor] = []
        for layer, function in pairs(encoder):
            convolves = isinstance(layer, nn.Conv2d)
            self._layers.append(Convolution(layer, dtype, scale, seen) if convolves else Linear(layer, dtype))
            self._functions.append(function)
            with torch.no_grad():
                seen = layer((seen if convolves else rows_of(seen)).float())
                seen = seen if function is None else function(seen)
            self._activations.append(_buffer(seen, rows, dtype))
            scale = 1.0
        linear = [layer.layer for layer in self._layers if isinstance(layer, Linear)]
        self.written = [parameter for layer in linear for parameter in layer.parameters()]
        first = self._layers[0]
        self.words = first if isinstance(first, Convolution) and first.words else None
        self._convolutions = sum(isinstance(layer, Convolution) for layer in self._layers)
        in_parts = self._convolutions and observation.device.type == "cpu"  # the linear layers take all rows at a time
        row = max(activations[0].nbytes for activations in self._activations)
        self.at_once = max(at_once or 1, PART_BYTES // row) if in_parts else rows
        laid_out = self.words.fold(observation) if self.words else observation
        self._laid_out = _buffer(laid_out, at_once or min(rows, self.at_once), observation.dtype)
        self.observations = _buffer(laid_out, rows, dtype)
        self.features = self._activations[-1]
        below = [self.observations, *self._activations[:-1]]
        self._inputs = [layer.view(memory) for layer, memory in zip(self._layers, below)]  # the same memory, as layers take it

    def cut(self, rows: slice) -> Cut:
        """Cut out some rows."""
        chain = zip(self._layers, self._functions, self._inputs, self._activations)
        number = rows.stop - rows.start
        layers = [layer.over(x[rows], y[rows], function) for layer, function, x, y in chain]
        return Cut(self._laid_out[:number], self.observations[rows], layers, self.features[rows])

    def load_parameters(self) -> None:
        """Take the parameters as they are now, without gradient."""
        for layer in self._layers:
            layer.load_parameters()

    def forward(self, observations: torch.Tensor, cut: Cut) -> torch.Tensor:
        """Map observations [N, ...] to features [N, F], without gradient; keep both, and the activations, where `cut` is."""
        self._keep(observations, cut)
        with np.errstate(all="ignore"):  # as torch does
            for layer in cut.layers:
                layer()
        return cut.features

    def _keep(self, observations: torch.Tensor, cut: Cut) -> None:
        """Lay observations out for the first layer, then convert: one after the other is much faster than both at a time."""
        if self.words:
            copy_words(observations, cut.laid_out)
        elif observations.dim() == 4:
            copy_planes(observations, cut.laid_out)
        cut.observations.copy_(cut.laid_out if observations.dim() == 4 else observations)

    def backward(self, gradient: torch.Tensor) -> None:
        """Bring the gradient of the features of the first rows, [M, F], to the `grad` of every layer's weight and bias.

        Those of convolutions are added, those of linear layers are written. Activations are written over.
        """
        rows = len(gradient)
        copy = gradient.to(self._dtype, copy=True)  # the original is not ours to write over
        below = self._descend(range(self._convolutions, len(self._layers)), copy, slice(0, rows))
        if below is not None:  # there are convolutions
            for first in range(0, rows, self.at_once):
                part = slice(first, min(first + self.at_once, rows))
                self._descend(range(self._convolutions), below[part], part)

    def _descend(self, depths: range, gradient: torch.Tensor, rows: slice) -> torch.Tensor | None:
        """Turn the gradient of some rows' activations above the layers `depths` into that of those below them (None below the
        first)."""
        for depth in reversed(depths):
            y, function = self._activations[depth][rows], self._functions[depth]
            gradient = images(gradient, y) if y.dim() == 4 else gradient
            if isinstance(function, nn.Tanh):
                torch.ops.aten.tanh_backward.grad_input(gradient, y, grad_input=gradient)
            elif function is not None:
                torch.ops.aten.threshold_backward.grad_input(gradient, y, 0, grad_input=gradient)
            below = self._layers[depth].backward(gradient, self._inputs[depth][rows], further=depth > 0)
            self._between()
            if below is None:
                return None
            gradient = below
        return gradient


def _buffer(one: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """Make room for `rows` like this one, [1, ...]; images channels last, as convolutions read them fastest."""
    room = torch.zeros((rows, *one.shape[1:]), dtype=dtype, device=one.device)
    return room.contiguous(memory_format=torch.channels_last) if room.dim() == 4 else room
