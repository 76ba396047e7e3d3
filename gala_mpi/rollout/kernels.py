"""The layers of an encoder, forward and backward, with the weights of a rollout. `cached.py` keeps what they compute.

A convolution is computed as one over fewer and fatter pixels where its stride allows: `across` pixels side by side are the
channels of one. With channels last that is another view of the same memory, and oneDNN's gradients of images are then 10
to 20% faster, in bfloat16 those of the first layer's weights too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gala_mpi.networks.encoders import Flatten

SMALL = 1 << 14  # weights of a layer for which what it gives is best written where it belongs, as it is computed
FEW = 1 << 18  # weights times rows, up to which numpy takes half of torch's time, and OpenBLAS one thread
FEW_OF_ONE_ROW = (9 << 10) - 1  # the same where there is one row
GRAIN = 1 << 15  # numbers, up to which torch has one thread for a tanh, and takes twice numpy's time
WORD = 4  # bytes; so many neighbouring pixels are moved as one

_torch_alone = False


class Linear:
    """Rows → rows.

    Args:
        layer: its parameters must have a `grad` (see `flat.py`) when a gradient comes.
        dtype: of the computation.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        self.layer, self._copied = layer, dtype != layer.weight.dtype
        self._is_small = not self._copied and layer.weight.numel() <= SMALL
        self._weight, self._bias = _copies(layer, dtype) if self._copied else (layer.weight, layer.bias)
        self._on_host = layer.weight.device.type == "cpu"
        self._address = 0  # of the weight that `_arrays` are of

    def load_parameters(self) -> None:
        """A new rollout: take the parameters as they are now."""
        if self._copied:
            self._weight.copy_(self.layer.weight)
            self._bias.copy_(self.layer.bias)
        elif self._is_small and self._on_host and self._address != (address := self.layer.weight.data_ptr()):
            self._address = address
            self._arrays = self.layer.weight.detach().numpy().T, self.layer.bias.detach().numpy()

    def over(self, x: torch.Tensor, out: torch.Tensor, function: nn.Module | None) -> Callable[[], None]:
        """Return the forward pass over some rows, to be done any number of times: [N, F] → [N, F'], in `out`."""
        most = FEW if len(x) > 1 else min(FEW, FEW_OF_ONE_ROW)
        if self._is_small and self._on_host and len(x) * self.layer.weight.numel() <= most:
            return partial(self._few, x, out, x.numpy(), out.numpy(), function)
        return partial(activated, self.forward, x, out, function)

    def _few(self, x: torch.Tensor, out: torch.Tensor, rows: np.ndarray, to: np.ndarray, function: nn.Module | None) -> None:
        """The forward pass over few rows, by numpy: `rows` and `to` are the memory of `x` and `out`."""
        if _torch_alone:
            return activated(self.forward, x, out, function)
        weight, bias = self._arrays
        np.add(np.matmul(rows, weight, out=to), bias, out=to)
        if isinstance(function, nn.Tanh):
            np.tanh(to, out=to)
        elif function is not None:
            np.maximum(to, 0, out=to)

    def view(self, memory: torch.Tensor) -> torch.Tensor:
        """Rows or images as `forward` and `backward` take them, [N, F]."""
        return rows_of(memory)

    def forward(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """[N, F] → [N, F'], in `out` where that is faster."""
        if self._is_small:
            return torch.addmm(self._bias, x, self._weight.T, out=out)
        # Of many weights and few rows a third faster, in bfloat16 of all
        return torch.addmm(self._bias[:, None], self._weight, x.T).T

    def backward(self, gradient: torch.Tensor, x: torch.Tensor, further: bool) -> torch.Tensor | None:
        """Write the gradients of weight and bias: all rows that are learnt from are here.

        Returns:
            The gradient of the rows, None unless `further`.
        """
        below = gradient @ self._weight if further else None
        of_weight, of_bias = gradient_of(self.layer.weight), gradient_of(self.layer.bias)
        if self._copied:
            of_weight.copy_(torch.mm(gradient.T, x, out=self._weight))  # which is needed no more
            of_bias.copy_(gradient.sum(0))
        else:
            torch.mm(gradient.T, x, out=of_weight)
            torch.sum(gradient, 0, out=of_bias)
        return below


class Convolution:
    """Images → images, channels last.

    Args:
        layer, dtype: as with Linear.
        scale: what images are multiplied by; the weights are, instead of them.
        x: what it sees, [N, C, H, W]; only its shape, dtype and device are used.

    Attributes:
        words: whether images come folded already, by `copy_words`.
    """

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, scale: float, x: torch.Tensor):
        self.layer, self._scale = layer, scale
        stride = layer.stride[1]
        fits = layer.kernel_size[1] % stride == 0 and x.shape[3] % stride == 0
        self._across = stride if fits and x.device.type == "cpu" else 1  # measured on CPUs
        self.words = x.dtype == torch.uint8 and self._across == WORD
        self._stride = layer.stride[0], stride // self._across
        self._copied = self.words or scale != 1 or dtype != layer.weight.dtype
        if self._copied:
            weight, self._bias = _copies(layer, dtype)
            self._weight = self.fold(weight).contiguous(memory_format=torch.channels_last)

    def load_parameters(self) -> None:
        """A new rollout: take the parameters as they are now."""
        if self._copied:
            self._weight.copy_(self.fold(self.layer.weight)).mul_(self._scale)
            self._bias.copy_(_bias(self.layer))
        else:
            self._weight, self._bias = self.fold(self.layer.weight), _bias(self.layer)

    def view(self, memory: torch.Tensor) -> torch.Tensor:
        """Images (words: folded ones) as `forward` and `backward` take them, [N, across · C, H, W / across]."""
        return memory if self.words else self.fold(memory)

    def over(self, x: torch.Tensor, out: torch.Tensor, function: nn.Module | None) -> Callable[[], None]:
        """Return the forward pass over some images, to be done any number of times: folded ones → [N, C', H', W'], in `out`."""
        return partial(activated, self.forward, x, out, function)

    def forward(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Folded images → images [N, C', H', W'], not in `out`."""
        return F.conv2d(x, self._weight, self._bias, self._stride)

    def backward(self, gradient: torch.Tensor, x: torch.Tensor, further: bool) -> torch.Tensor | None:
        """Add to the gradients of weight and bias.

        Returns:
            The gradient of the folded images, None unless `further`.
        """
        nothing = [0, 0]
        below, of_weight, of_bias = torch.ops.aten.convolution_backward(
            *(gradient, x, self._weight, [len(self._bias)], self._stride, nothing, [1, 1], False, nothing, 1),
            [further, True, True],
        )
        to = self._split(gradient_of(self.layer.weight))
        to.add_(of_weight.unflatten(1, to.shape[1:3]), alpha=self._scale)
        gradient_of(self.layer.bias).add_(of_bias)
        return below

    def _split(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] → the pixels side by side have a dimension of their own, beside the channels, in the order in which
        they lie in memory: behind them (of words), or before."""
        return images.unflatten(3, (-1, self._across)).permute((0, 1, 4, 2, 3) if self.words else (0, 4, 1, 2, 3))

    def fold(self, images: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] → [N, across · C, H, W / across]. A view, but for words."""
        return self._split(images).flatten(1, 2)

    def unfold(self, words: torch.Tensor) -> torch.Tensor:
        """Undo `fold` (and `copy_words`) of images that come folded: [N, across · C, H, W / across] → [N, C, H, W]."""
        return words.unflatten(1, (-1, self._across)).permute(0, 1, 3, 4, 2).flatten(3)


@contextlib.contextmanager
def torch_alone() -> Iterator[None]:
    """Let torch compute all, what numpy does faster as well: for whoever counts or compares torch's operations."""
    global _torch_alone
    before, _torch_alone = _torch_alone, True
    try:
        yield
    finally:
        _torch_alone = before


def activated(
    layer: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, out: torch.Tensor, function: nn.Module | None
) -> None:
    """Put what an activation function makes of layer(x, out) into `out`; None: as it is."""
    y = layer(x, out)
    if function is None:
        out.copy_(y)  # itself, maybe, which takes no time
    elif not isinstance(function, nn.Tanh):
        torch.clamp_min(y, 0, out=out)
    elif y is out and out.numel() <= GRAIN and out.device.type == "cpu" and not _torch_alone:
        np.tanh(out.numpy(), out=out.numpy())
    else:
        torch.tanh(y, out=out)


def copy_words(images: torch.Tensor, to: torch.Tensor) -> None:
    """Bytes [N, C, H, W], best plane after plane → [N, 4 · C, H, W / 4] channels last: 4 pixels side by side stay together.

    A third of the time that it takes to bring single pixels to channels last.
    """
    words = images.contiguous().view(torch.int32)
    to.permute(0, 2, 3, 1).view(torch.int32).copy_(words.permute(0, 2, 3, 1))


def copy_planes(images: torch.Tensor, to: torch.Tensor) -> None:
    """[N, C, H, W], plane after plane → channels last, which is fastest plane by plane."""
    for plane, channel in zip(images.unbind(1), to.unbind(1)):
        channel.copy_(plane)


def images(memory: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Rows, or images with other channels, that lie in memory as `like` does, channels last: in its shape."""
    if memory.dim() == 4:
        memory = memory.permute(0, 2, 3, 1)
    channels, height, width = like.shape[1:]
    return memory.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Images (or rows) → rows, as they lie in memory."""
    return Flatten()(x) if x.dim() == 4 else x


def _copies(layer: nn.Conv2d | nn.Linear, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.weight.detach().to(dtype, copy=True), _bias(layer).detach().to(dtype, copy=True)


def _bias(layer: nn.Conv2d | nn.Linear) -> torch.Tensor:
    assert layer.bias is not None  # see `cached.fits`
    return layer.bias


def gradient_of(parameter: torch.Tensor | None) -> torch.Tensor:
    assert parameter is not None and parameter.grad is not None  # see `flat.py`
    return parameter.grad
