"""The fast path: the forward passes of a rollout, cached for its backward pass.

Parameters do not change within a rollout, so the passes that chose the actions are the ones that A2C differentiates: there
is no second forward pass. It is for learners that differentiate a rollout once, and for encoders of known layers (`fits`).
Observations (converted) and activations of all passes lie in buffers made once. The backward pass goes over them in parts
that fit a core's cache, writes over what it has read, and puts the parameters' gradients where they lie: large blocks that
are allocated anew have no pages yet, and getting those took a tenth of an update.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from gala_mpi.networks import statistics
from gala_mpi.networks.distributions import Policy
from gala_mpi.networks.encoders import Flatten
from gala_mpi.networks.policy import Network
from gala_mpi.networks.statistics import Scaling
from gala_mpi.rollout.batch import Player
from gala_mpi.rollout.kernels import Convolution, Linear, copy_planes, copy_words, images, rows_of

PART_BYTES = 1 << 21  # of the largest activations that the backward pass works on at a time: about what a core's cache holds


def fits(network: Network, learner: Player) -> bool:
    """Say whether a network's passes can be cached for a learner.

    They can if the learner differentiates each rollout once, and the encoder is a plain chain: convolutions without padding
    (images have one at least), then linear layers, one at least, each followed by a ReLU or a Tanh.
    """
    if not learner.one_pass or type(network) is not Network or type(network.encoder) is not nn.Sequential:
        return False
    if network.spaces.masked or network.memory is not None:  # of masks the heads must know
        return False
    modules = list(network.encoder)
    kinds = "".join(_LETTERS.get(type(module), "?") for module in modules)
    chain = r"(Ca)+F(La)+" if network.spaces.image else r"(La)+"
    layers = [module for module in modules if isinstance(module, (nn.Conv2d, nn.Linear))]
    counted = statistics.parameters_of(network)
    return (
        re.fullmatch(chain, kinds) is not None
        and len(set(map(id, layers))) == len(layers)
        and all(layer.bias is not None for layer in layers)
        and all(_is_plain(layer) for layer in layers if isinstance(layer, nn.Conv2d))
        and all(parameter.requires_grad for parameter in network.parameters() if id(parameter) not in counted)
    )


_LETTERS = {nn.Conv2d: "C", nn.Linear: "L", Flatten: "F", nn.ReLU: "a", nn.Tanh: "a"}


def _is_plain(layer: nn.Conv2d) -> bool:
    return (layer.padding, layer.dilation, layer.groups) == ((0, 0), (1, 1), 1)


def pairs(encoder: nn.Sequential) -> list[tuple[nn.Conv2d | nn.Linear, nn.Module]]:
    """Return (layer, activation function) in order; a Flatten between them only reshapes and is left out."""
    layers = [layer for layer in encoder if not isinstance(layer, Flatten)]
    return cast(list[tuple[nn.Conv2d | nn.Linear, nn.Module]], list(zip(layers[::2], layers[1::2])))  # it `fits`


class Cached:
    """The observations and activations of the forward passes of T + 1 steps (the last one bootstraps). See `Passes`.

    Args:
        network: one that `fits`. Its parameters must have a `grad` (see `flat.py`) when a gradient comes.
        steps: the most that a rollout has.
        observations: what one pass sees, [N, ...]; only its shape, dtype and device are used.
        turns: how many passes make a step, each over N other rows.
        between: called between the layers of a backward pass, which is the longest time without anything else.
    """

    name = "cached"

    def __init__(
        self,
        network: Network,
        steps: int,
        observations: torch.Tensor,
        turns: int = 1,
        between: Callable[[], None] = lambda: None,
    ):
        self._network, self._dtype, self._between = network, network.dtype, between
        self._batch, self._num_envs, passes = len(observations), turns * len(observations), (steps + 1) * turns
        # Observations go in as they are, the first layer's weights are scaled instead: pixels are exact in bfloat16.
        seen, scale = observations, network.scale
        self._layers: list[Convolution | Linear] = []
        self._functions: list[nn.Module] = []
        self._activations: list[torch.Tensor] = []
        for layer, function in pairs(network.encoder):
            convolves = isinstance(layer, nn.Conv2d)
            self._layers.append(Convolution(layer, self._dtype, scale, seen) if convolves else Linear(layer, self._dtype))
            self._functions.append(function)
            with torch.no_grad():
                seen = function(layer((seen if convolves else rows_of(seen)).float()))
            self._activations.append(_buffer(seen, passes, self._dtype))
            scale = 1.0
        first = self._layers[0]
        self._words = first if isinstance(first, Convolution) and first.words else None  # to which images come folded
        one_pass = self._words.fold(observations) if self._words else observations
        self._laid_out = _buffer(one_pass, 1, observations.dtype)
        self._observations = _buffer(one_pass, passes, self._dtype)
        # What observations are before they are normalised, and how they are in this rollout.
        self._given: torch.Tensor | None = None
        self._scaling: Scaling | None = None
        if network.observation_sums is not None:
            self._given, self._scaling = _buffer(observations, passes, observations.dtype), network.observation_sums.scaling()
        row = max(activations[0].nbytes for activations in self._activations)
        self._convolutions = sum(isinstance(layer, Convolution) for layer in self._layers)
        in_parts = self._convolutions and observations.device.type == "cpu"  # the linear layers take all rows at a time
        self._at_once = max(self._batch, PART_BYTES // row) if in_parts else steps * self._num_envs
        self.end(steps)
        below = [self._observations, *self._activations[:-1]]
        # The same memory, as the layers take it; and of each pass, cut once: a view takes as long as a small layer.
        self._inputs = [layer.view(memory) for layer, memory in zip(self._layers, below)]
        self._of_pass = [slice(at, at + self._batch) for at in range(0, passes * self._batch, self._batch)]
        self._room_of_pass = [self._observations[rows] for rows in self._of_pass]
        chain = list(zip(self._layers, self._functions, self._inputs, self._activations))
        self._chain_of_pass = [[(layer, f, x[rows], y[rows]) for layer, f, x, y in chain] for rows in self._of_pass]

        # A backward pass writes the gradients of linear layers' weights, and adds to all others.
        written = {id(layer.layer.weight) for layer in self._layers if isinstance(layer, Linear)}
        left = written | statistics.parameters_of(network)
        self._added = [parameter for parameter in network.parameters() if id(parameter) not in left]

    def end(self, steps: int) -> None:
        """Let the rollout have T = `steps` steps, as many as there is room for or fewer."""
        self._grid = steps, self._num_envs
        self._rows = steps * self._num_envs
        self._parts = [slice(at, min(at + self._at_once, self._rows)) for at in range(0, self._rows, self._at_once)]

    @torch.no_grad()
    def load_parameters(self) -> None:
        """Begin a new rollout with the parameters as they are now."""
        for layer in self._layers:
            layer.load_parameters()
        if self._scaling is not None and (sums := self._network.observation_sums) is not None:
            for mine, now in zip(self._scaling, sums.scaling()):
                mine.copy_(now)

    @torch.no_grad()
    def forward(
        self, number: int, observations: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        """Do pass `number` (step by step, turn by turn, from 0 on) over [N, ...]: a distribution over actions and values."""
        if self._scaling is not None and self._given is not None:
            self._given[self._of_pass[number]].copy_(observations)
            observations = self._network.normalised(observations, self._scaling)
        self._keep(observations, self._room_of_pass[number])
        for layer, function, x, out in self._chain_of_pass[number]:
            y = layer.forward(x)
            torch.tanh(y, out=out) if isinstance(function, nn.Tanh) else torch.clamp_min(y, 0, out=out)
        return self._network.heads(out.float())

    def evaluate(
        self, rows: torch.Tensor | None = None, state: torch.Tensor | None = None, resets: torch.Tensor | None = None
    ) -> tuple[Policy, torch.Tensor]:
        """Run the heads again over the features of steps 0 .. T-1, with gradient: a distribution over actions and values,
        [T, N]. The gradient of the features goes on to the encoder's parameters.

        Raises:
            ValueError: only all steps together can be differentiated.
        """
        if rows is not None:
            raise ValueError("cached passes are differentiated all together; rows of them need passes that are stored")
        features = self._activations[-1][: self._rows].float().requires_grad_()
        features.register_hook(self._backward)
        return self._network.heads(features.view(*self._grid, -1))

    @torch.no_grad()
    def bootstrap(self) -> torch.Tensor:
        """Return the value of what was seen after the last step, [N], by the passes' network: before `backward`."""
        return self._network.heads(self._activations[-1][self._rows : self._rows + self._num_envs].float())[1]

    def backward(self, loss: torch.Tensor) -> None:
        """Put the gradient of `loss` in place of the parameters' `grad`. Once a rollout: activations are written over."""
        for parameter in self._added:
            assert parameter.grad is not None  # see `flat.py`
            parameter.grad.zero_()
        loss.backward()

    @torch.no_grad()
    def observations(self) -> torch.Tensor:
        """Return what the network saw at steps 0 .. T-1, [T, N, ...], in the dtype of observations."""
        seen, spaces = (self._observations if self._given is None else self._given)[: self._rows], self._network.spaces
        if self._words:
            seen = self._words.unfold(seen)
        return seen.to(self._laid_out.dtype).reshape(*self._grid, *spaces.observation_shape)

    def _keep(self, observations: torch.Tensor, room: torch.Tensor) -> None:
        """Lay observations out for the first layer, then convert: one after the other is much faster than both at a time."""
        if self._words:
            copy_words(observations, self._laid_out)
        elif observations.dim() == 4:
            copy_planes(observations, self._laid_out)
        room.copy_(self._laid_out if observations.dim() == 4 else observations)

    @torch.no_grad()
    def _backward(self, gradient: torch.Tensor) -> None:
        """Bring the gradient of the features, [T · turns · N, F], to the `grad` of every layer's weight and bias.

        Those of convolutions and biases are added; those of linear layers' weights, which are the largest, are written.
        """
        copy = gradient.to(self._dtype, copy=True)  # the original is not ours to write over
        below = self._descend(range(self._convolutions, len(self._layers)), copy, slice(0, self._rows))
        if below is not None:  # there are convolutions
            for rows in self._parts:
                self._descend(range(self._convolutions), below[rows], rows)

    def _descend(self, depths: range, gradient: torch.Tensor, rows: slice) -> torch.Tensor | None:
        """Turn the gradient of some rows' activations above the layers `depths` into that of those below them (None below the
        first)."""
        for depth in reversed(depths):
            y = self._activations[depth][rows]
            gradient = images(gradient, y) if y.dim() == 4 else gradient
            if isinstance(self._functions[depth], nn.Tanh):
                torch.ops.aten.tanh_backward.grad_input(gradient, y, grad_input=gradient)
            else:
                torch.ops.aten.threshold_backward.grad_input(gradient, y, 0, grad_input=gradient)
            below = self._layers[depth].backward(gradient, self._inputs[depth][rows], further=depth > 0)
            self._between()
            if below is None:
                return None
            gradient = below
        return gradient


def _buffer(one: torch.Tensor, passes: int, dtype: torch.dtype) -> torch.Tensor:
    """Make room for `passes` tensors like `one`, behind each other; images channels last, as convolutions read them fastest."""
    room = torch.zeros((passes * len(one), *one.shape[1:]), dtype=dtype, device=one.device)
    return room.contiguous(memory_format=torch.channels_last) if room.dim() == 4 else room
