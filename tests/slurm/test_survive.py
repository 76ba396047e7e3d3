"""A rank dies under Slurm's srun, and the others go on (--survive)."""

from __future__ import annotations

import pytest

import launch
from lost_rank import is_whole_again, loses_a_rank


@pytest.mark.long
@pytest.mark.parametrize("nodes, updates", [(1, 800), (4, 100)])
def test_a_rank_is_killed(cluster, tmp_path, monkeypatch, nodes, updates):
    """On one node they share memory; between nodes there is TCP, which UCX would otherwise see through: it is one machine."""
    script = tmp_path / "srun"
    transport = "UCX_TLS=tcp,self " if nodes > 1 else ""
    command = f"env SLURM_CONF={cluster.files}/slurm.conf {transport}srun --mpi=pmi2 --no-kill -K0 --nodes={nodes}"
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(launch, "LAUNCHER", script)
    loses_a_rank(tmp_path / "run", n=4, victim=3, updates=updates)
    is_whole_again(tmp_path / "run", n=4, victim=3, updates=updates)
