"""Agents that share nothing: the control of every comparison, and what one rank does."""

from __future__ import annotations

from gala_mpi.exchange.base import Exchange


class Independent(Exchange):
    """Send nothing of what is learnt, as the base class does; each agent saves by its own clock."""

    shares = False
