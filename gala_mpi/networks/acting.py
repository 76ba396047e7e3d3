"""A network that plays: what it remembers of the episodes of N environments, and the actions that it chooses."""

from __future__ import annotations

import numpy as np
import torch

from gala_mpi.networks.policy import Network


class Acting:
    """The same way of choosing actions for evaluation, films and policies outside of this program.

    Args:
        network: on the CPU.
        number: N, of environments.
    """

    def __init__(self, network: Network, number: int):
        self._network, self._state = network, network.first_state(number)

    @torch.no_grad()
    def choose(self, observations: np.ndarray, generator: torch.Generator | None = None) -> np.ndarray:
        """Return an action for each of N observations, [N, ...], and take down what is to be remembered.

        Args:
            generator: what actions are drawn from; None: the most probable ones are taken.
        """
        policy, _, self._state = self._network.step(torch.as_tensor(observations), self._state)
        return (policy.sample(generator) if generator else policy.mode).numpy()

    def forget(self, which: np.ndarray) -> None:
        """Begin new episodes where `which` is true, bool [N], as in training, where a return begins."""
        self._state[torch.as_tensor(which)] = 0
