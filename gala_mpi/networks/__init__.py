"""Networks: an encoder from this table, a policy head and a value head. A new encoder is one function from the environment's
spaces to a module, and one line here."""

from __future__ import annotations

from dataclasses import dataclass

from gala_mpi.lazy import Member


@dataclass(frozen=True)
class NetworkMember(Member):
    """One line of NETWORKS.

    Attributes:
        images: whether it takes images (True), other observations (False) or both (None).
    """

    images: bool | None


NETWORKS = {
    "gala": NetworkMember(
        "gala_mpi.networks.encoders:gala", "32-64-32 convolutions + 512 units (the GALA authors' code)", True
    ),
    "nature": NetworkMember("gala_mpi.networks.encoders:nature", "32-64-64 convolutions + 512 units (Mnih et al. 2015)", True),
    "mlp": NetworkMember("gala_mpi.networks.encoders:mlp", "64-64 tanh units", False),
}
