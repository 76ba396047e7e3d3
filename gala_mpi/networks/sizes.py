"""How much memory a network takes of a rank, before any of it is allocated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gala_mpi.networks.policy import Network

ROWS = 3  # observations of a measurement


@dataclass(frozen=True)
class Sizes:
    """What of a network a rank keeps.

    Attributes:
        parameters: P, their number.
        observation: bytes of one observation.
        step: bytes that autograd keeps of one step through the encoder, in float32.
        images: whether the network sees some.
    """

    parameters: int
    observation: int
    step: int
    images: bool


def measure(network: Network) -> Sizes:
    """Count what autograd keeps in a forward pass over a few observations, on the CPU."""
    spaces, kept = network.spaces, {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # which is held by this, so that no storage takes the place of another one

    observations = torch.from_numpy(np.zeros((ROWS, *spaces.observation_shape), spaces.observation_dtype))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        features, _ = network.encode(observations)
    for parameter in network.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del features
    return Sizes(
        sum(parameter.numel() for parameter in network.parameters()),
        observations[0].nbytes,
        sum(kept.values()) // ROWS,
        spaces.picture is not None,
    )
