"""Learning algorithms: a learner turns a rollout into losses. A new one is one file (see `base.Learner`) and one line here."""

from __future__ import annotations

from gala_mpi.lazy import Member

LEARNERS = {
    "a2c": Member("gala_mpi.learners.a2c:A2C", "advantage actor-critic (Mnih et al. 2016)"),
}
