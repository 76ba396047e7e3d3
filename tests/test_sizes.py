"""What autograd keeps of a step, by which memory is planned: counted by hand."""

from __future__ import annotations

from gala_mpi.envs import registry
from gala_mpi.networks import sizes
from gala_mpi.networks.policy import Network

FLOAT = 4


def measured(env: str, network: str, **settings: str) -> sizes.Sizes:
    environments = registry.make(env, 1)
    found = sizes.measure(Network(network, environments.spaces, settings=settings))
    environments.close()
    return found


def test_two_layers_of_numbers():
    """The observation, and what each layer's tanh puts out."""
    parameters = 4 * 64 + 64 + 64 * 64 + 64 + 3 * (64 + 1)
    found = measured("CartPole-v1", "mlp", hidden="64,64", activation="tanh")
    assert found == sizes.Sizes(parameters, 4 * FLOAT, (4 + 64 + 64) * FLOAT, images=False)


def test_layers_of_images():
    """The image as numbers, and what each layer puts out."""
    found = measured("pong", "nature")
    layers = 32 * 20**2 + 64 * 9**2 + 64 * 7**2 + 512
    assert found.images and found.observation == 4 * 84**2
    assert found.step == (4 * 84**2 + layers) * FLOAT
