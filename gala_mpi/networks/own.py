"""Networks of the user's own, `--network MODULE:FUNCTION`: a function from an environment's spaces to a torch module.

The module takes what every encoder takes (see `encoders.py`). It returns features, float [N, F], behind which the policy's
and the value's head are put; or, with heads of its own, a pair: the policy's outputs, float [N, outputs] (logits, or the means
of a box of actions), and values, float [N] or [N, 1].

Whatever it does is done on every rank, at every step, and differentiated: what would go wrong then is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gala_mpi.envs.base import Spaces
from gala_mpi.envs.modules import in_a_line, load, same_directory
from gala_mpi.errors import SettingError

ROWS = 3  # observations of a trial
RTOL, ATOL = 1e-3, 1e-4  # the same numbers, by sums in another order


def make(name: str, spaces: Spaces) -> nn.Module:
    """Call the function of this name, and return its module.

    Raises:
        SettingError: there is no such function, it fails, or it returns no module.
    """
    try:
        function = load(name, "network")
    except SettingError as error:
        raise SettingError(f"--network {name}: {error}") from None
    if not callable(function):
        raise SettingError(f"--network {name}: it is of type {type(function).__name__}; a function is expected")
    with _in_a_line(name, "it cannot be made"):
        module = function(spaces)
    if not isinstance(module, nn.Module):
        raise SettingError(
            f"--network {name}: it returns an object of type {type(module).__name__}; a torch module is expected"
        )
    return module


def try_out(name: str, module: nn.Module, spaces: Spaces) -> None:
    """Run some observations through a module, and refuse what cannot be learnt, shared or played again.

    Raises:
        SettingError: what it returns has another shape, is not finite, differs from call to call or with the observations that
            come along; or its parameters are not float32, are not used, or there are none.
    """

    def refuse(what: str) -> SettingError:
        return SettingError(f"--network {name}: {what}")

    rows = some_observations(spaces)
    buffers = {key: buffer.clone() for key, buffer in module.named_buffers()}
    with _in_a_line(name, f"its forward pass fails on observations {list(rows.shape)}"):
        first, again, alone = module(rows), module(rows), module(rows[:1])
    outputs = _outputs(name, first, spaces)
    if not all(torch.isfinite(each).all() for each in outputs):
        raise refuse("it returns numbers that are not finite; finite ones are expected")
    if not _close(outputs, _outputs(name, again, spaces)):
        raise refuse("it returns other numbers each time (dropout, noise); the same of the same observations are expected")
    if not _close([each[:1] for each in outputs], _outputs(name, alone, spaces, rows=1)):
        raise refuse(
            "what it returns of an observation goes by those beside it (batch normalisation); its own alone is expected"
        )
    changed = [key for key, buffer in module.named_buffers() if not torch.equal(buffer, buffers.get(key, buffer))]
    if changed:
        raise refuse(f"its {', '.join(changed)} change as it runs, which agents neither share nor save; constants are expected")
    _check_parameters(name, module, outputs)


@torch.no_grad()
def returned(module: nn.Module, spaces: Spaces) -> list[torch.Tensor]:
    """Return what a module says of `some_observations`: features, or the policy's outputs and values."""
    outputs = module(some_observations(spaces))
    return list(outputs) if has_heads(outputs) else [outputs]


def has_heads(outputs: Any) -> bool:
    """Return whether what a module has returned is the policy's outputs and values, not features."""
    return isinstance(outputs, (tuple, list))


def some_observations(spaces: Spaces) -> torch.Tensor:
    """Return observations as an encoder sees them, float32 [ROWS, ...]: always the same, random ones."""
    generator = torch.Generator().manual_seed(0)
    if not spaces.image:
        return torch.randn(ROWS, *spaces.observation_shape, generator=generator)
    images = torch.rand(ROWS, *spaces.observation_shape, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


@contextmanager
def _in_a_line(name: str, what: str) -> Iterator[None]:
    """Raise what a user's code raises as a SettingError of one line."""
    try:
        with same_directory():
            yield
    except (Exception, SystemExit) as error:
        raise SettingError(f"--network {name}: {what} ({in_a_line(error)})") from None


def _outputs(name: str, output: Any, spaces: Spaces, rows: int = ROWS) -> list[torch.Tensor]:
    """Return what a module has returned as tensors: features, or the policy's outputs and values. Raises SettingError."""
    outputs = list(output) if has_heads(output) else [output]
    tensors = all(isinstance(each, torch.Tensor) and each.is_floating_point() for each in outputs)
    if tensors and len(outputs) == 1 and outputs[0].dim() == 2 and len(outputs[0]) == rows and outputs[0].numel():
        return outputs
    heads = [(rows, spaces.outputs)], [(rows,), (rows, 1)]
    if tensors and len(outputs) == 2 and all(each.shape in shapes for each, shapes in zip(outputs, heads)):
        return outputs
    shown = ", ".join(
        f"{str(each.dtype).removeprefix('torch.')} {list(each.shape)}"
        if isinstance(each, torch.Tensor)
        else type(each).__name__
        for each in outputs
    )
    raise SettingError(
        f"--network {name}: it returns {f'({shown})' if has_heads(output) else shown} of {rows} observations; features, float "
        f"[{rows}, F], or (policy's outputs, float [{rows}, {spaces.outputs}], values, float [{rows}]) are expected"
    )


def _close(outputs: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.allclose(one.flatten(), other.flatten(), RTOL, ATOL) for one, other in zip(outputs, others))


def _check_parameters(name: str, module: nn.Module, outputs: list[torch.Tensor]) -> None:
    parameters = dict(module.named_parameters())
    others = [f"{key} ({parameter.dtype})" for key, parameter in parameters.items() if parameter.dtype != torch.float32]
    if others:
        raise SettingError(f"--network {name}: its {', '.join(others)} cannot be shared; parameters of float32 are expected")
    learnt = {key: parameter for key, parameter in parameters.items() if parameter.requires_grad}
    if not learnt and len(outputs) == 2:
        raise SettingError(f"--network {name}: it has no parameters to learn; some are expected")
    total = torch.stack([each.double().sum() for each in outputs]).sum()
    gradients = (
        torch.autograd.grad(total, list(learnt.values()), allow_unused=True) if total.requires_grad else [None] * len(learnt)
    )
    unused = [key for key, gradient in zip(learnt, gradients) if gradient is None]
    if unused:
        raise SettingError(
            f"--network {name}: its {', '.join(unused[:5])}{' ...' * (len(unused) > 5)} get no gradient from what it returns; "
            "parameters that are used, or requires_grad_(False), are expected"
        )
