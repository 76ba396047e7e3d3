"""`--config FILE.toml`: it stands for flags."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest

from gala_mpi import config, config_file
from gala_mpi.config import Config
from gala_mpi.errors import SettingError
from gala_mpi.topology import Graph

OTHER = {int: 7, float: 0.625, str: 'a "name" with = ü', Path: Path("some/where"), Graph: Graph.from_word("exponential")}


def paths(kind: type, names: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every setting as the names that lead to it."""
    found = []
    for field in dataclasses.fields(kind):
        of = typing.get_type_hints(kind)[field.name]
        is_group = dataclasses.is_dataclass(of) and of is not Graph
        found += paths(of, (*names, field.name)) if is_group else [(*names, field.name)]
    return found


def others(kind: Any, default: Any) -> list[Any]:
    """Values of a type that are not the default; None where a setting may be left open."""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return [value for value in choices if value != default]
    if typing.get_origin(kind) is tuple:
        return [("x=1", "y") if choices[0] is str else tuple(others(choices[0], default))]
    if choices:
        return [
            value
            for choice in choices
            for value in ([None] if choice is type(None) else others(choice, default))
            if value != default
        ]
    return [not default] if kind is bool and default is not None else [True, False] if kind is bool else [OTHER[kind]]


def replaced(settings: Any, names: tuple[str, ...], value: Any) -> Any:
    first, *rest = names
    return dataclasses.replace(settings, **{first: replaced(getattr(settings, first), tuple(rest), value) if rest else value})


SETTINGS = [names for names in paths(Config) if names[0] not in config_file.OF_THE_COMMAND]


@pytest.mark.parametrize("names", SETTINGS, ids=map(".".join, SETTINGS))
def test_every_setting_comes_out_of_the_file_as_it_went_in(tmp_path, names):
    kind, default = Config, Config()
    for name in names:
        kind, default = typing.get_type_hints(kind)[name], getattr(default, name)
    file = tmp_path / "run.toml"
    for value in others(kind, default):
        settings = replaced(Config(), names, value)
        file.write_text(config_file.to_toml(settings))
        assert config.parse(config_file.expand(["--config", str(file)])) == settings, file.read_text()


def test_defaults_need_no_file():
    assert config_file.to_toml(Config()) == ""


def test_flags_win_wherever_they_stand_and_later_files_over_earlier_ones(tmp_path):
    one, other = tmp_path / "one.toml", tmp_path / "other.toml"
    one.write_text('seed = 1\nnum-envs = 4\nenv = "pong"\n[ppo]\nclip = 0.3\nvalue_clip = 0.5\n')
    other.write_text("num_envs = 8\noverlap = false\n")
    words = ["train", "--seed", "2", "--config", str(one), f"--config={other}", "--ppo.clip", "0.1"]
    expanded = config_file.expand(words)
    assert expanded[0] == "train" and expanded[-4:] == ["--seed", "2", "--ppo.clip", "0.1"]
    found = config.parse(expanded[1:])
    assert (found.seed, found.num_envs, found.env, found.overlap) == (2, 8, "pong", False)
    assert (found.ppo.clip, found.ppo.value_clip) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colour = 3", "colour: a flag of gala_mpi.train without its -- is expected"),
        ("[ppo]\ncolour = 3", "ppo.colour: a flag of gala_mpi.train"),
        ("ppo = 3", "ppo: a table is expected"),
        ("[seed]\nx = 3", "seed: a value is expected"),
        ('run-dir = "x"', "run-dir: a flag"),
        ("resume = true", "resume: a flag"),
        ('config = "x.toml"', "config: a flag"),
        ('exact-resume = "yes"', "exact-resume: true or false is expected"),
        ("overlap = 1", "overlap: true or false is expected"),
        ('env = "--help"', "env: a value that is no flag"),
        ('log = ["wandb", "--help"]', "log: a value that is no flag"),
        ('env = ["a", "b"]', "env: one value is expected"),
        ("num-envs = 2\nnum_envs = 3", "num_envs: it stands there twice"),
        ("seed = ", "a TOML file is expected (Invalid value"),
        (b"\xff", "a TOML file is expected ('utf-8' codec"),
    ],
)
def test_what_is_no_setting_is_refused_by_its_name(tmp_path, text, words):
    file = tmp_path / "bad.toml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SettingError) as refused:
        config_file.expand(["--config", str(file)])
    assert str(refused.value).startswith(f"--config {file}: ") and words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "words"), [("no.toml", "No such file"), (".", "Is a directory"), (None, "a TOML file is expected")]
)
def test_what_cannot_be_read_is_refused(tmp_path, name, words):
    with pytest.raises(SettingError, match=words):
        config_file.expand(["--config", *([str(tmp_path / name)] if name else [])])
