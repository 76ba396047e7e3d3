"""Logs for other programs: those that are not there, and those that fail."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from gala_mpi.errors import DiskError, SettingError
from gala_mpi.learners.base import Losses
from gala_mpi.record import logs
from gala_mpi.record.recorder import Update
from gala_mpi.run.evaluations import Evaluated


class Failing:
    """Takes some writes, then raises."""

    def __init__(self, writes: int, error: Exception):
        self.left, self.error, self.closed = writes, error, False
        self.rows: list[tuple[int, dict[str, float]]] = []

    def write(self, step, scalars):
        if not self.left:
            raise self.error
        self.left -= 1
        self.rows.append((step, scalars))

    def close(self):
        self.closed = True


def update(policy: float, kl: float = math.nan) -> Update:
    return Update(Losses(policy, 1.0, 2.0, kl), 3.0, 4.0, [], [])


def scalars(monkeypatch, tmp_path, *made: Failing) -> logs.Scalars:
    monkeypatch.setattr(logs, "LOGS", {str(i): lambda *_, log=log: log for i, log in enumerate(made)})
    return logs.Scalars([str(i) for i in range(len(made))], tmp_path, "{}", 100)


def test_means_of_what_has_come_since_the_last_time(monkeypatch, tmp_path):
    log = Failing(10, RuntimeError())
    made = scalars(monkeypatch, tmp_path, log)
    made.update(update(1.0), 110, {"score": 5})
    assert log.rows == []  # not yet
    monkeypatch.setattr(logs, "SECONDS_BETWEEN_SCALARS", 0)
    made.update(update(2.0, kl=0.5), 120, {"score": 6})
    made.update(update(7.0), 130, {"score": math.nan})
    made.close(140, {"score": 8})
    assert [step for step, _ in log.rows] == [120, 130, 140] and log.closed
    first, second, last = (row for _, row in log.rows)
    assert (first["agent0/policy_loss"], first["agent0/kl"], first["run/score"]) == (1.5, 0.5, 6)
    assert second["agent0/policy_loss"] == 7 and "agent0/kl" not in second and "run/score" not in second
    assert last["run/score"] == 8 and "agent0/policy_loss" not in last
    assert all(row["run/steps_per_second"] > 0 for _, row in log.rows)


def test_a_run_goes_on_without_a_log_that_fails(monkeypatch, tmp_path, capsys):
    bad, good = Failing(1, ConnectionError("gone")), Failing(10, RuntimeError())
    made = scalars(monkeypatch, tmp_path, bad, good)
    for step in (110, 120, 130):
        made.write(step, {"score": 1})
    made.close(140, {})
    assert [step for step, _ in good.rows] == [110, 120, 130, 140] and good.closed and not bad.closed
    assert capsys.readouterr().err == "gala_mpi: warning: Failing gets no more scalars (ConnectionError: gone)\n"


def test_a_full_disk_ends_it_as_for_every_file(monkeypatch, tmp_path):
    made = scalars(monkeypatch, tmp_path, Failing(0, DiskError("full")))
    with pytest.raises(DiskError):
        made.write(110, {"score": 1})


def test_evaluations_are_written_at_the_steps_of_their_checkpoints(monkeypatch, tmp_path):
    log = Failing(10, RuntimeError())
    made = scalars(monkeypatch, tmp_path, log)
    made.evaluation(Evaluated(3, 20.5, 0.25, 10, 800, True))
    made.evaluation(Evaluated(4, 21.0, math.nan, 1, 900, True))
    first = {"evaluation/score": 20.5, "evaluation/error": 0.25, "evaluation/games": 10, "evaluation/checkpoint": 3}
    second = {"evaluation/score": 21, "evaluation/games": 1, "evaluation/checkpoint": 4}
    assert log.rows == [(800, first), (900, second)]


def test_a_film_is_an_image_that_tensorboard_plays(tmp_path):
    gif = tmp_path / "film.gif"
    imageio.imwrite(gif, np.random.default_rng(0).integers(0, 255, (5, 30, 400, 3), np.uint8))
    log = logs.TensorBoard(tmp_path, "{}", 0)
    log.film(3_000_000_000, "evaluation/film", gif)
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    *_, event = tensorboard(file)
    (value,) = event.summary.value
    assert (event.step, value.tag) == (3_000_000_000, "evaluation/film")
    assert (value.image.width, value.image.height, value.image.colorspace) == (400, 30, 3)
    assert value.image.encoded_image_string == gif.read_bytes()


def tensorboard(file: Path) -> Iterator[event_pb2.Event]:
    data = file.read_bytes()
    while data:  # records: length, its checksum, an event, its checksum
        length = int.from_bytes(data[:8], "little")
        record = data[: 16 + length]
        assert record == record_writer_bytes(record[12:-4])
        yield event_pb2.Event.FromString(record[12:-4])
        data = data[16 + length :]


def record_writer_bytes(event: bytes) -> bytes:
    """A record as tensorboardX writes it, checksums and all."""
    length = struct.pack("<Q", len(event))
    sums = [struct.pack("<I", record_writer.masked_crc32c(part)) for part in (length, event)]
    return length + sums[0] + event + sums[1]


def test_a_package_that_is_not_there_is_asked_for(monkeypatch):
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    logs.check(["tensorboard"])
    with pytest.raises(SettingError, match=r"--log wandb: wandb is not installed; pip install gala_mpi\[wandb\] is expected"):
        logs.check(["tensorboard", "wandb"])
