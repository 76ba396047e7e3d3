"""A rank dies under Slurm's srun, and the others go on (--survive)."""

from __future__ import annotations

import pytest

import launch
from lost_rank import is_whole_again, loses_a_rank


@pytest.mark.long
def test_a_rank_is_killed(cluster, tmp_path, monkeypatch):
    script = tmp_path / "srun"
    command = f"env SLURM_CONF={cluster.files}/slurm.conf srun --mpi=pmi2 --no-kill -K0 --nodes=1"
    script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setattr(launch, "LAUNCHER", script)
    loses_a_rank(tmp_path / "run", n=4, victim=3, updates=20_000)
    is_whole_again(tmp_path / "run", n=4, victim=3, updates=400)
