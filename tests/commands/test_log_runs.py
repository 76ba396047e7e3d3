"""`--log`: what other programs show of a run while it trains is what its own files say. Read by readers of theirs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from wandb.proto import wandb_internal_pb2

from commandline import SMALL, STEPS_PER_UPDATE, table, train
from gala_mpi.run import evaluations, open_run

LOSSES = ("policy_loss", "value_loss", "entropy", "grad_norm", "step_norm", "policy_lag")


def tensorboard(file: Path) -> Iterator[event_pb2.Event]:
    data = file.read_bytes()
    while data:  # records: length, its checksum, an event, its checksum
        length = int.from_bytes(data[:8], "little")
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def wandb(file: Path) -> Iterator[dict[str, float]]:
    """The rows of a history. Behind 7 bytes stand parts of records: a checksum, their length, which part it is."""
    data, record = file.read_bytes()[7:], b""
    while data:
        length, kind = int.from_bytes(data[4:6], "little"), data[6]
        record += data[7 : 7 + length]
        data = data[7 + length :]
        if kind in (1, 4):  # a whole one, or the last part of one
            found = wandb_internal_pb2.Record.FromString(record)
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in found.history.item}
            if items:
                yield items
            record = b""


def scores(run: Path, rank: int, first: int, last: int) -> list[float]:
    """Of a rank's episodes that ended at these updates."""
    return [float(row["score"]) for row in table(run, rank, "episodes") if first < row["update"] <= last]


@pytest.fixture
def offline(monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_scalars_are_those_of_the_run(tmp_path, offline):
    """So short a run is written down once, at its end; the one that goes on likewise."""
    run = tmp_path / "run"
    flags = (*SMALL, "--staleness", 0, "--log", "tensorboard", "wandb")
    for total in (60, 100):
        train(2, run, *(flags if total == 60 else ("--resume",)), "--total-steps", 2 * total * STEPS_PER_UPDATE)
    files = sorted((run / "tensorboard").iterdir(), key=lambda file: file.stat().st_mtime)
    rows = table(run, 0, "updates")
    for file, first, last in zip(files, (0, 60), (60, 100), strict=True):
        version, start, *scalars = tensorboard(file)
        assert version.file_version == "brain.Event:2"
        assert start.session_log.status == event_pb2.SessionLog.START and start.step == 2 * first * STEPS_PER_UPDATE
        found = {value.tag: value.simple_value for event in scalars for value in event.summary.value}
        assert {event.step for event in scalars} == {2 * last * STEPS_PER_UPDATE}
        for name in LOSSES:
            assert found[f"agent0/{name}"] == pytest.approx(rows[name][first:last].mean(dtype=float), rel=1e-5), name
        assert "agent0/kl" not in found and all(map(math.isfinite, found.values()))
        (own, others), (old, older) = ([scores(run, rank, *ends) for rank in range(2)] for ends in ((first, last), (0, first)))
        # The last 50 of each, with which a resumed run goes on; of the other's those that have been heard of
        last_own = [*old, *own][-50:]
        heard = {len(own) + k: np.mean([*last_own, *[*older, *others[:k]][-50:]]) for k in range(len(others) + 1)}
        assert found["run/score"] == pytest.approx(heard[found["run/episodes"]], rel=1e-5)
        assert 0 < found["run/mixes"] <= 2 * (last - first) and found["run/steps_per_second"] > 0
    histories = [list(wandb(file)) for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb"))]
    assert [row["steps"] for rows in histories for row in rows] == [120 * STEPS_PER_UPDATE, 200 * STEPS_PER_UPDATE]
    for name, value in found.items():
        assert histories[-1][-1][name] == pytest.approx(value, rel=1e-5), name
    assert len({file.name for file in run.glob("wandb/offline-run-*/run-*.wandb")}) == 1  # one run, which goes on


@pytest.mark.long
def test_evaluations_are_shown_with_a_film(tmp_path, offline, importable_here):
    run = tmp_path / "run"
    flags = ("--env", "painted_pole:Painted-v0", *SMALL[2:], "--log", "tensorboard", "wandb")
    train(2, run, *flags, "--total-steps", 4000, "--evaluate-minutes", 5, "--evaluate-episodes", 3)
    (about,) = evaluations.read(run)
    (file,) = (run / "tensorboard").iterdir()
    shown = [event for event in tensorboard(file) if any(v.tag.startswith("evaluation/") for v in event.summary.value)]
    assert {event.step for event in shown} == {about.steps}
    values = {value.tag: value for event in shown for value in event.summary.value}
    assert values["evaluation/score"].simple_value == pytest.approx(about.score)
    assert values["evaluation/checkpoint"].simple_value == about.checkpoint
    frames = imageio.imread(values["evaluation/film"].image.encoded_image_string, extension=".gif")
    games, _ = open_run(run).evaluations[0]
    assert frames.shape[1:] == (20, 40, 3) and len(frames) <= min(200, games["length"][0]) + 1
    (history,) = run.glob("wandb/offline-run-*/run-*.wandb")
    rows = [row for row in wandb(history) if any(name.startswith("evaluation/") for name in row)]
    assert {row["steps"] for row in rows} == {about.steps}
    assert any(row.get("evaluation/score") == pytest.approx(about.score) for row in rows)
    (film,) = run.glob("wandb/offline-run-*/files/media/videos/evaluation/*.gif")
    assert film.read_bytes() == values["evaluation/film"].image.encoded_image_string
    assert not (run / "films").exists()


def test_a_run_that_needs_a_key_ends_before_it_begins(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would be
    ended = train(2, tmp_path / "run", *SMALL, "--log", "wandb", "--total-steps", 400, status=1)
    assert "--log wandb: No API key configured" in ended.stderr and "WANDB_MODE=offline, is expected" in ended.stderr
    assert "Traceback" not in ended.stderr
