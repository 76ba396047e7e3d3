"""Networks: an encoder from this table, a policy head and a value head.

A new encoder is one function from the environment's spaces to a module, and one line here. One of the user's own is named by
where it is defined, MODULE:FUNCTION (`own.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gala_mpi.lazy import Member

SMALLEST_IMAGE = 36  # pixels a side that leave something for the third convolution of `gala` and `nature`


@dataclass(frozen=True)
class NetworkMember(Member):
    """One line of NETWORKS.

    Attributes:
        images: whether it takes images (True), other observations (False) or both (None).
        smallest: the fewest pixels that an image must have on each side.
        settings: what the function is told besides the spaces, by its names in `Config`, and what it is told by default.
    """

    images: bool | None
    smallest: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)


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
    "impala": NetworkMember(
        "gala_mpi.networks.impala:impala",
        "16-32-32 convolutions with residual blocks + 256 units (Espeholt et al. 2018), 7 times gala's arithmetic",
        True,
        8,
    ),
    "mlp": NetworkMember(
        "gala_mpi.networks.encoders:mlp",
        "64-64 tanh units, or those of --hidden, --activation and --value-network; images are flattened",
        None,
        settings={"hidden": "64,64", "activation": "tanh", "value_network": "shared"},
    ),
}
SETTINGS = tuple(dict.fromkeys(name for member in NETWORKS.values() for name in member.settings))


def member(name: str) -> NetworkMember:
    """Return a network's line of the table, or one for a function of the user's own."""
    return NETWORKS[name] if name in NETWORKS else NetworkMember(name, "a network of the user's own", None)


def is_own(name: str) -> bool:
    """Return whether a network is named by where a function of the user's own is, MODULE:FUNCTION."""
    return name not in NETWORKS and ":" in name


def moved(name: str, before: str) -> bool:
    """Return whether both are the same function of the user's own, in another module maybe."""
    return is_own(name) and is_own(before) and name.rpartition(":")[2] == before.rpartition(":")[2]


def default(image: tuple[int, ...] | None) -> str:
    """Return the network for images of a shape [channels, height, width], or for observations that have none."""
    if image is None:
        return "mlp"
    return "gala" if min(image[1:]) >= SMALLEST_IMAGE else "small"
