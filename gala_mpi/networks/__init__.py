"""Networks: an encoder from this table, a policy head and a value head.

A new encoder is one function from the environment's spaces to a module, and one line here.
"""

from __future__ import annotations

from dataclasses import dataclass

from gala_mpi.lazy import Member

SMALLEST_IMAGE = 36  # pixels a side that leave something for the third convolution of `gala` and `nature`


@dataclass(frozen=True)
class NetworkMember(Member):
    """One line of NETWORKS.

    Attributes:
        images: whether it takes images (True), other observations (False) or both (None).
        smallest: the fewest pixels that an image must have on each side.
    """

    images: bool | None
    smallest: int = 1


NETWORKS = {
    "gala": NetworkMember(
        "gala_mpi.networks.encoders:gala",
        "32-64-32 convolutions + 512 units (the GALA authors' code)",
        True,
        SMALLEST_IMAGE,
    ),
    "nature": NetworkMember(
        "gala_mpi.networks.encoders:nature",
        "32-64-64 convolutions + 512 units (Mnih et al. 2015)",
        True,
        SMALLEST_IMAGE,
    ),
    "small": NetworkMember(
        "gala_mpi.networks.encoders:small",
        "a convolution of 16 channels + 128 units, for images under 36 pixels a side (Young & Tian 2019)",
        True,
        3,
    ),
    "mlp": NetworkMember("gala_mpi.networks.encoders:mlp", "64-64 tanh units; images are flattened", None),
}


def default(image: tuple[int, ...] | None) -> str:
    """Return the network for images of a shape [channels, height, width], or for observations that have none."""
    if image is None:
        return "mlp"
    return "gala" if min(image[1:]) >= SMALLEST_IMAGE else "small"
