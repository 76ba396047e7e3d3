"""What is refused before a replay begins, and how its end is judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from recorded import update_rows, write

from gala_mpi.config import A2CSettings, Config
from gala_mpi.config_checks import check
from gala_mpi.errors import SettingError
from gala_mpi.job import reproduce
from gala_mpi.job.prepare import read as parse
from gala_mpi.run import layout, writer

RECORDED = Config(env="CartPole-v1", network="mlp", precision="fp32", wall_minutes=3.0, slow_rank="1:5ms")


def record(run: Path, config: Config = RECORDED) -> Config:
    """A run of two ranks with a thread each; the settings of its replay."""
    writer.write_run(run, dataclasses.replace(config, run_dir=run), 2, {"threads": [1, 1]})
    for rank in range(2):
        write(run, rank, 0, updates=update_rows(1, 10))
    return parse(["--replay", str(run), "--run-dir", "again"])


def test_a_replay_has_the_settings_of_its_run(tmp_path):
    settings = record(tmp_path / "run")
    assert settings == dataclasses.replace(
        RECORDED, replay=tmp_path / "run", run_dir=Path("again"), wall_minutes=None, slow_rank=None
    )
    reproduce.check(settings, [1, 1])
    reproduce.check(dataclasses.replace(settings, sketch_updates=1, checkpoint_minutes=1.0, staleness=3, max_lag=9), [1, 1])


@pytest.mark.parametrize(
    "change, what",
    [
        ({"seed": 1}, "seed 1; the run's 0 is expected"),
        ({"total_steps": 5}, "total_steps 5; the run's 40000000 is expected"),
        ({"a2c": A2CSettings(discount=0.9)}, "a2c A2CSettings(discount=0.9"),
    ],
)
def test_other_settings_are_refused(tmp_path, change, what):
    settings = dataclasses.replace(record(tmp_path / "run"), **change)
    with pytest.raises(SettingError) as error:
        reproduce.check(settings, [1, 1])
    assert str(error.value).startswith(f"--replay {tmp_path / 'run'}: {what}")


def test_other_ranks_and_threads_are_refused(tmp_path):
    settings = record(tmp_path / "run")
    with pytest.raises(SettingError, match=r"3 ranks; the run's 2 are expected \(mpirun -n 2\)"):
        reproduce.check(settings, [1, 1, 1])
    with pytest.raises(SettingError, match=r"threads \[2, 2\]; the run's \[1, 1\] are expected"):
        reproduce.check(settings, [2, 2])


def test_a_rank_that_was_killed_before_it_recorded_anything_is_named(tmp_path):
    settings = record(tmp_path / "run")
    layout.metrics_files(tmp_path / "run", 1)[0].unlink()
    with pytest.raises(SettingError, match="rank 1 has recorded nothing; metrics of all 2 agents are expected"):
        reproduce.check(settings, [1, 1])


def test_a_diverged_run_can_be_repeated(tmp_path, capsys):
    """NaN is NaN, but 0 is not -0: what counts are the bits."""
    rows = update_rows(1, 10)
    rows["policy_loss"][5:] = np.nan
    for name, zero in (("run", 0.0), ("same", 0.0), ("other", -0.0)):
        rows["value_loss"][8] = zero
        writer.write_run(tmp_path / name, RECORDED, 1, {})
        write(tmp_path / name, 0, 0, updates=rows)
    assert reproduce.repeats(tmp_path / "run", tmp_path / "same", 0)
    assert not reproduce.repeats(tmp_path / "run", tmp_path / "other", 0)
    assert "from update 9 on" in capsys.readouterr().err


def test_what_was_resumed_or_did_not_gossip_is_refused(tmp_path):
    with pytest.raises(SettingError, match="--exchange allreduce; gossip is expected"):
        reproduce.check(record(tmp_path / "a2c", dataclasses.replace(RECORDED, exchange="allreduce")), [1, 1])
    with pytest.raises(SettingError, match="--exchange periodic; gossip is expected"):
        reproduce.check(record(tmp_path / "sgd", dataclasses.replace(RECORDED, exchange="periodic")), [1, 1])
    record(tmp_path / "run")
    with pytest.raises(SettingError, match="was started 2 times; one that was never resumed is expected"):
        reproduce.check(record(tmp_path / "run"), [1, 1])


def test_a_replay_needs_a_run_and_is_not_resumed(tmp_path):
    with pytest.raises(SettingError, match=f"--replay {tmp_path}: a run is expected there"):
        parse(["--replay", str(tmp_path)])
    with pytest.raises(SettingError, match=r"--resume --replay .*: one of the two is expected"):
        check(Config(resume=True, replay=tmp_path))
    with pytest.raises(SettingError, match=r"--wall-minutes --replay .*: one of the two is expected"):
        check(Config(wall_minutes=3, replay=tmp_path))
