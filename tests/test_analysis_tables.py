"""Which runs the scripts take (--where), what they say of unequal runs, and their tables: on terminals and in files."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from recorded import ANALYSIS, begin, command, episode_rows, make, update_rows, write
from synthetic import scored

import export
import learning_curves
import tables
import throughput
from gala_mpi.config import A2CSettings
from gala_mpi.run import RunError, open_run
from groups import chosen, grouped, load, mixtures
from script import Options, main
from stats import Estimate
from tables import Table
from without_training import run_without

# Which runs.

FIVE = [
    {"env": "pong", "seed": 1},
    {"env": "pong", "seed": 2, "staleness": 4},
    {"env": "breakout", "seed": 3, "decay_lr": True},
    {"env": "pong", "seed": 10, "exchange": "none"},
    {"env": "CartPole-v1", "seed": 10, "staleness": 0},
]


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    folder = tmp_path_factory.mktemp("five")
    for number, settings in enumerate(FIVE):
        settings = dict(settings)
        learner = A2CSettings(decay_lr=settings.pop("decay_lr", False))
        begin(folder / str(number), **settings, a2c=learner)
    return load([folder])[0]


@pytest.mark.parametrize(
    "where, left",
    [
        ("", [0, 1, 2, 3, 4]),
        ("env=pong", [0, 1, 3]),
        ("env!=pong", [2, 4]),
        ("env=pong,seed<3", [0, 1]),
        (" env = pong , seed < 3 ", [0, 1]),
        ("seed<10", [0, 1, 2]),
        ("seed<=10,seed>2", [2, 3, 4]),
        ("seed>=3", [2, 3, 4]),
        ("seed=2", [1]),
        ("seed=2.0", [1]),
        ("exchange=none", [3]),
        ("method=independent", [3]),
        ("staleness=unset", [0, 2, 3]),
        ("staleness!=unset", [1, 4]),
        ("staleness>=0", [1, 4]),
        ("staleness=0", [4]),
        ("staleness!=0", [0, 1, 2, 3]),
        ("a2c.decay-lr=true", [2]),
        ("a2c.decay_lr!=True", [0, 1, 3, 4]),
        ("simulators=32", [0, 1, 2, 3, 4]),
        ("topology=ring,env=breakout", [2]),
    ],
)
def test_runs_are_chosen_by_their_settings(five, where, left):
    assert [int(run.path.name) for run in chosen(five, where)] == left


@pytest.mark.parametrize(
    "where, said",
    [
        ("pong", "--where pong: a setting, one of =, !=, <, <=, >, >=, and a value are expected, as env=pong"),
        ("env=pong,", "--where : a setting, one of"),
        ("=3", "--where =3: a setting, one of"),
        ("colour=red", "--where colour: no such setting; one of a2c.adam_eps"),
        ("seed<two", "--where seed<two: a value like those of the runs is expected; seed is 1, 2, 3, 10 in these runs"),
        ("seed=nan", "--where seed=nan: a value like those"),
        ("seed=", "--where seed=: a value like those"),
        ("staleness<unset", "--where staleness<unset: a value like those of the runs is expected; staleness is unset, 0, 4"),
        (
            "env<pong",
            "--where env<pong: env is no number; = or != is expected; env is CartPole-v1, breakout",
        ),
        ("a2c.decay_lr=maybe", "--where a2c.decay_lr=maybe: a value like those of the runs is expected"),
        ("seed>10", "--where seed>10: no run is left by seed>10; seed is 1, 2, 3, 10 in these runs"),
        ("env=pong,seed=3", "--where env=pong,seed=3: no run is left by seed=3; seed is 1, 2, 10 in these runs"),
    ],
)
def test_a_condition_without_sense_is_refused_in_one_line(five, where, said):
    with pytest.raises(RunError) as refused:
        chosen(five, where)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_the_commands_take_where(tmp_path, monkeypatch, capsys):
    for seed in range(3):
        make(tmp_path / "all" / f"s{seed}", seed, number=60)
    monkeypatch.chdir(tmp_path)
    main(learning_curves.answer, learning_curves.Curves, "", ["all", "--where", "seed<2"])
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:3]] == ["all/s0", "all/s1"] and "s2" not in out
    export.main(["all", "--to", "out", "--format", "csv", "--where", "seed=1"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s1"]
    done = command("report", "all", "--where", "seed=7", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "report.py: --where seed=7: no run is left by seed=7; seed is 0, 1, 2 in these runs\n"


# Unequal runs.


def test_runs_of_unequal_budgets_and_versions_are_told(tmp_path):
    from recorded import METADATA

    from gala_mpi.config import Config
    from gala_mpi.run import writer

    for number, (steps, commit, exchange) in enumerate(
        [(1_280_000, "a" * 40, "gossip"), (16_000, "a" * 40, "gossip"), (16_000, "b" * 40, "allreduce")]
    ):
        settings = Config(env="pong", exchange=exchange, total_steps=steps, rollout_length=5, seed=number)
        writer.write_run(tmp_path / str(number), settings, 2, METADATA | {"commit": commit, "gala_mpi": "0.1.0"})
    begin(tmp_path / "other", env="breakout")
    found, _ = load([tmp_path])
    assert mixtures(grouped(found, "exchange")) == [
        "pong: its runs differ in total_steps: 16,000 (1 of allreduce, 1 of gossip); 1,280,000 (1 of gossip)",
        "pong: its runs differ in commit: bbbbbbbbbb (1 of allreduce); aaaaaaaaaa (2 of gossip)",
    ]
    assert mixtures(grouped(found[:1] + found[3:], "exchange")) == []


# On a terminal.

WIDE = Table(
    ("run", "group", "steps", "score", "source"),
    [
        ("runs/pong-gossip-2026", "pong GALA ring", 3_204_112, Estimate(0.512, 0.25, 0.75), "github.com/DLR-RM/rl-zoo 22e3ff2"),
        ("runs/b", "pong A2C", 12, Estimate(17.25), "these runs"),
    ],
)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 200])
def test_nothing_is_cut_on_a_narrow_terminal(width, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    tables.print_table(WIDE)
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()  # without bold
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    words = " ".join(lines).split()
    for cell in ("steps", "3,204,112", "12", "0.512", "[0.25,", "0.75]", "17.2", "GALA", "ring", "A2C"):
        assert cell in words, cell
    assert not Counter("".join(cell for row in WIDE.cells() for cell in row)) - Counter("".join(lines))  # words may be broken
    names, blocks = words.count("runs/b"), 1 + lines.count("")
    assert (blocks > 1) == (width < 200)
    numbered = width // 2 < len("runs/pong-gossip-2026") + 2  # the first column is too wide to stand in every block
    assert (names, words.count("#")) == ((1, blocks) if numbered else (blocks, 0))


def test_blocks_have_the_columns_that_tell_rows_apart(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    rows = [("pong", "GALA", 1, "x" * 30), ("pong", "A2C", 2, "y" * 30), ("breakout", "A2C", 3, "z" * 30)]
    tables.print_table(Table(("env", "method", "a very long heading of a number", "words"), rows))
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert [line.split()[:2] for line in lines if line.startswith(("pong", "breakout"))] == [[*row[:2]] for row in rows] * 2


def test_a_table_that_no_terminal_sees_has_a_line_a_row(capsys):
    name = "runs/" + 500 * "x"
    tables.print_table(Table(("run", "steps"), [(name, 12)]))
    assert capsys.readouterr().out.splitlines()[1].split() == [name, "12"]


def test_numbers_for_people():
    values = [0, 1234567, 0.12345, 12.345, 123.45, 1234.5, np.float32(2.5), np.int64(7), None, np.nan, np.inf, -np.inf, True]
    assert [tables.show(value) for value in values] == (
        ["0", "1,234,567", "0.123", "12.3", "123.5", "1,234", "2.5", "7", "–", "–", "∞", "-∞", "True"]
    )
    assert tables.show(Estimate(np.inf, 3, np.inf)) == "∞ [3, ∞]" and tables.show(Estimate(np.nan)) == "–"


# In files.


@pytest.fixture
def timed(tmp_path):
    """A run whose folder has a name with all that Markdown and LaTeX give a meaning."""
    run_dir = begin(tmp_path / "a_$1|b%é", agents=1)
    write(run_dir, 0, 0, updates=update_rows(1, 100), episodes=episode_rows(np.random.default_rng(0), 60))
    return run_dir


@pytest.mark.parametrize("script", ["learning_curves", "throughput"])
@pytest.mark.parametrize("form", ["csv", "md", "tex", "txt"])
def test_every_script_writes_its_table(timed, script, form, monkeypatch, capsys):
    file = timed.parent / f"t.{form}"
    module = {"learning_curves": learning_curves, "throughput": throughput}[script]
    options = {"learning_curves": learning_curves.Curves, "throughput": Options}[script]
    monkeypatch.chdir(timed.parent)
    main(module.answer, options, "", [timed.name, "--table", file.name])
    assert capsys.readouterr().out.splitlines()[-1] == file.name
    whole = file.read_text(encoding="utf-8")
    heading = {"learning_curves": "episodes", "throughput": "ranks"}[script]
    lines = whole.splitlines()
    if form == "csv":
        [row] = csv.DictReader(whole.splitlines())
        if script == "learning_curves":
            assert row["run"] == timed.name
            assert float(row["last"]) == open_run(timed).scores["score"].mean(dtype=float)  # with all digits
        else:
            assert float(row["frames/s"]) == pytest.approx(80 / 72)
    elif form == "md":
        assert lines[0].startswith("| ") and heading in lines[0]
        assert all(line.replace(r"\|", "").count("|") == lines[0].count("|") for line in lines)
    elif form == "tex":
        assert lines[0].startswith(r"\begin{tabular}{") and lines[-1] == r"\end{tabular}"
        assert script == "throughput" or r"a\_\$1|b\%é & " in whole
    else:
        assert heading in lines[0] and len(lines) == 2


def test_estimates_have_three_columns_in_files(tmp_path):
    tables.write_table(WIDE, tmp_path / "t.csv")
    rows = list(csv.DictReader(open(tmp_path / "t.csv")))
    assert list(rows[0]) == ["run", "group", "steps", "score", "score low", "score high", "source"]
    assert [rows[0][name] for name in ("score", "score low", "score high")] == ["0.512", "0.25", "0.75"]
    assert [rows[1][name] for name in ("score", "score low", "score high")] == ["17.25", "nan", "nan"]


def test_parquet_holds_the_numbers(tmp_path):
    from pyarrow import parquet

    mixed = Table(("a", "b", "c"), [(1, None, "x"), (2.5, np.float32(2), 3)])
    tables.write_table(mixed, tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pydict() == {"a": [1.0, 2.5], "b": [None, 2.0], "c": ["x", "3"]}
    tables.write_table(WIDE, tmp_path / "w.parquet")
    read = parquet.read_table(tmp_path / "w.parquet").to_pydict()
    assert read["steps"] == [3_204_112, 12] and read["score high"][0] == 0.75


def test_what_parquet_needs_is_named(timed):
    done = run_without(("pyarrow",), ANALYSIS / "throughput.py", timed.name, "--table", "t.parquet", cwd=timed.parent)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "throughput.py: --table t.parquet: pyarrow is not installed (pip install pyarrow)\n"


@pytest.mark.parametrize("file, said", [("t.doc", "a file name that ends in .csv, .md, .parquet"), ("no/t.md", "no folder no")])
def test_a_table_that_cannot_be_written_is_refused(timed, file, said, monkeypatch, capsys):
    monkeypatch.chdir(timed.parent)
    with pytest.raises(SystemExit) as ended:
        main(throughput.answer, Options, "", [timed.name, "--table", file])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"throughput.py: --table {file}: ") and said in error
    assert error.count("\n") == 1 and not (timed / "throughput.png").exists()


@pytest.mark.parametrize("table", ["f.csv", "../{}/f.csv"])
def test_a_table_in_the_place_of_the_figures_numbers_is_refused(timed, table, monkeypatch, capsys):
    monkeypatch.chdir(timed.parent)
    table = table.format(timed.parent.name)
    with pytest.raises(SystemExit) as ended:
        main(throughput.answer, Options, "", [timed.name, "--table", table, "--out", "f.png"])
    said = f"throughput.py: --table {table}: the numbers of the figure are written there; another name is expected\n"
    assert (ended.value.code, capsys.readouterr().err) == (2, said)
    assert not list(timed.parent.glob("f.*"))


# Names as odd as they may be.

ODD = Table(("run", "steps"), [("runs/:100:/a\nb\r\tc", 7), ("plain", 8)])


def test_a_name_is_printed_as_it_is_and_in_one_line(capsys):
    tables.print_table(ODD)
    _, odd, plain = capsys.readouterr().out.splitlines()
    assert odd.split() == [r"runs/:100:/a\nb\r\tc", "7"] and plain.split() == ["plain", "8"]


@pytest.mark.parametrize("form, lines", [("md", 4), ("tex", 6), ("txt", 3)])
def test_a_line_break_in_a_name_breaks_no_row(tmp_path, form, lines):
    tables.write_table(ODD, tmp_path / f"t.{form}")
    assert len((tmp_path / f"t.{form}").read_text().splitlines()) == lines


@pytest.mark.parametrize(
    "script, environment",
    [
        ("learning_curves", {"PYTHONIOENCODING": "latin-1"}),
        ("aggregates", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
)
def test_terminals_without_unicode(tmp_path, script, environment):
    scored(tmp_path / "∞", 20, lambda s: s)
    call = [sys.executable, str(ANALYSIS / f"{script}.py"), "∞", "--by", "topology"]
    done = subprocess.run(call, cwd=tmp_path, env=os.environ | environment, capture_output=True, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr.decode("latin-1")
    assert b"\\u" in done.stdout or b"\\x" in done.stdout
