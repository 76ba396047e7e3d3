"""A network as a module of tensors alone, for torch programs that know nothing of this one."""

from __future__ import annotations

import torch
from torch import nn

from gala_mpi.networks.policy import Network


class Plain(nn.Module):
    """Map observations to the policy's outputs and values.

    Outputs, float32 [N, A], are the logits of discrete actions (-1e9 of those that the observation's mask excludes; of several
    choices those of each behind each other), or the means of a box of actions, flattened, in the network's units. Values are
    float32 [N].
    """

    def __init__(self, network: Network):
        super().__init__()
        self.network = network

    def forward(self, observations: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Map observations [N, ...] to (outputs, values); with a memory to (outputs, values, next state).

        Args:
            state: of a memory, float32 [N, S]; None: the observations are the first ones of N episodes.
        """
        network = self.network
        features, mask = network.encode(observations)
        if network.memory is None:
            return network.outputs(features, mask)
        features, after = network.memory(features, network.first_state(len(observations)) if state is None else state)
        return *network.outputs(features, mask), after
