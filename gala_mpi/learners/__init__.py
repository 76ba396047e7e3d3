"""Learning algorithms: a learner turns a rollout into a loss.

A new one is one file (a subclass of `base.Learner`) and one line here. Settings of its own are a dataclass in `settings.py`,
a field of Config of the learner's name; a learner without them is told what A2C is told.
"""

from __future__ import annotations

from gala_mpi.lazy import Member

LEARNERS = {
    "a2c": Member("gala_mpi.learners.a2c:A2C", "advantage actor-critic (Mnih et al. 2016)"),
    "ppo": Member("gala_mpi.learners.ppo:PPO", "proximal policy optimisation (Schulman et al. 2017)"),
    "vtrace": Member("gala_mpi.learners.vtrace:VTrace", "IMPALA's actor-critic with V-trace (Espeholt et al. 2018)"),
}
