"""How agents share what they learn: one base class, a few members, one table.

Everything outside this folder is the same for all of them, so that a comparison between them compares the communication and
nothing else. A new member is one file with the methods of `base.Exchange` that differ, and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gala_mpi.lazy import Member


@dataclass(frozen=True)
class ExchangeMember(Member):
    """A line of EXCHANGES.

    Attributes:
        method: what papers and figures call it.
        variants: settings that tell its variants apart, and how a label adds them, in this order.
    """

    method: str
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def graph(self) -> bool:
        """Whether agents read each other over the graph that --topology names."""
        return "topology" in self.variants

    def label(self, settings: Mapping[str, Any]) -> str:
        """Return the method in a reader's words. Settings that are None are left out."""
        parts = [form.format(settings[name]) for name, form in self.variants.items() if settings.get(name) is not None]
        return self.method + "".join(parts)


EXCHANGES = {
    "gossip": ExchangeMember(
        "gala_mpi.exchange.gossip:Gossip",
        "GALA: average parameters with neighbours, never wait",
        "GALA",
        {"topology": " {}", "staleness": ", τ = {}", "max_lag": ", lag ≤ {}"},
    ),
    "allreduce": ExchangeMember(
        "gala_mpi.exchange.allreduce:AllReduce", "A2C: average gradients over all ranks, in step", "A2C"
    ),
    "periodic": ExchangeMember(
        "gala_mpi.exchange.periodic:Periodic",
        "local SGD: average parameters over all ranks every --sync-updates updates",
        "local SGD",
        {"sync_updates": ", K = {}", "outer_momentum": ", μ = {}", "outer_lr": ", η = {}"},
    ),
    "server": ExchangeMember("gala_mpi.exchange.server:Server", "A3C: a shared vector in rank 0's window", "A3C"),
    "none": ExchangeMember("gala_mpi.exchange.independent:Independent", "independent agents", "independent"),
}
