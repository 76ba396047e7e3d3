"""The scripts of the analysis as a user calls them, on finished, live and damaged runs; the report in a browser; exports."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from recorded import (
    ANALYSIS,
    ROOT,
    STEPS,
    begin,
    command,
    cut,
    episode_rows,
    evaluate,
    make,
    measured_run,
    mix_rows,
    update_rows,
    write,
)

import aggregates
import compare
import learning_curves
import report
import robustness
import simulate
from gala_mpi.run import open_run
from gala_mpi.run.tables import TABLES
from groups import load
from script import Options
from without_training import TRAINING, run_without

SCRIPTS = {
    "learning_curves": learning_curves.Curves,
    "aggregates": aggregates.Aggregates,
    "staleness": Options,
    "throughput": Options,
    "scores": Options,
    "compare": compare.Compare,
    "robustness": robustness.Robustness,
    "consensus": Options,
    "influence": Options,
    "health": Options,
    "gradients": Options,
}


# Damaged, live and finished runs; the command.


def start(run_dir: Path, exchange: str, agents: int, first: int, last: int) -> None:
    """One start of a run on a ring: the metrics of updates first to last."""
    begin(run_dir, agents, env="pong", exchange=exchange, total_steps=100 * STEPS * 2)
    for rank in range(agents):
        random = np.random.default_rng(rank)
        sketched = np.arange(first + 9, last + 1, 10)
        sketches = np.zeros(len(sketched), TABLES["sketches"])
        sketches["update"] = sketched
        sketches["parameters"], sketches["gradient"] = random.normal(size=(2, len(sketches), 4096))
        updates = update_rows(first, last)
        updates["step_norm"], updates["cpu"] = 100, 0.05
        mixes = mix_rows(first, last) if exchange == "gossip" else np.zeros(0, TABLES["mixes"])
        mixes["peer"], mixes["version"] = (rank - 1) % agents, mixes["update"]
        episodes = episode_rows(random, 200, last, first)
        write(run_dir, rank, first - 1, agents, updates=updates, episodes=episodes, mixes=mixes, sketches=sketches)


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> dict[str, list[Path]]:
    """Runs that all scripts can answer of, in every state: two methods each. An elastic one had 4 agents, then 2."""
    folder = tmp_path_factory.mktemp("states")
    for state in STATES:
        for exchange in ("gossip", "allreduce"):
            run_dir = folder / state / exchange
            if state == "elastic":
                start(run_dir, exchange, 4, 1, 50)
                start(run_dir, exchange, 2, 51, 100)
            else:
                start(run_dir, exchange, 2, 1, 100 if state == "finished" else 60)
            evaluate(run_dir, {-1: [1.0, 2.0], 0: [0.0, 1.0], 1: [2.0, 3.0]})
        if state == "cut":
            third = write(folder / state / "gossip", 1, 60, updates=update_rows(61, 70))
            cut(third)
    return {state: [folder / state] for state in STATES}


STATES = ("finished", "live", "cut", "elastic")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_answers_of_runs_in_any_state(states, tmp_path, name, state, monkeypatch, capsys):
    module = sys.modules[name]
    monkeypatch.chdir(tmp_path)
    from script import main

    main(module.answer, SCRIPTS[name], module.__doc__, [*map(str, states[state]), "--out", "figure.png"])
    out, err = capsys.readouterr()
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.reader(open(tmp_path / "figure.csv")))
    assert len(rows) > 1 and len({len(row) for row in rows}) == 1
    assert "pong" in out or "A2C" in out
    sentence = out.split("\n\n")[-2]
    assert sentence.endswith(".") and re.search(r"\d", sentence) and "\n" not in sentence
    assert ("60% done; read as far as it goes" in err) == (state in ("live", "cut"))
    assert ("cannot be read" in err) == (state == "cut")


def test_the_command_on_several_runs_some_of_them_broken(tmp_path):
    for seed in range(3):
        make(tmp_path / "all" / f"g{seed}", seed)
    make(tmp_path / "all" / "n", 3, exchange="none", agents=1, last=50)
    other = make(tmp_path / "all" / "pong", 4, env="pong")
    begin(tmp_path / "all" / "new")
    begin(tmp_path / "all" / "torn")
    cut(tmp_path / "all" / "torn" / "run.h5")
    (other / "metrics" / "rank00001.h5").unlink()
    done = command("learning_curves", "all", "--by", "exchange", "--out", "curves.svg", cwd=tmp_path)
    assert done.returncode == 0
    notes = done.stderr.splitlines()
    assert all(line.startswith("note: ") for line in notes)
    assert any("all/torn/run.h5: cannot be read" in line for line in notes)
    assert any("all/new: no finished episode" in line for line in notes)
    assert "note: all/pong/metrics/rank00001.h5: missing" in notes
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["all/g0", "all/g1", "all/g2", "all/n", "all/pong"]
    assert "50% done" in lines[4] and "finished, metrics of 1 of 2 agents" in lines[5]
    assert "<svg" in (tmp_path / "curves.svg").read_text()


BAD = [
    ("learning_curves", ["nope"], "nope: nothing is there; a run directory is expected"),
    ("learning_curves", ["run", "nope"], "nope: nothing is there"),
    ("learning_curves", ["empty"], "empty: no run is there (no run.h5); a run directory or a folder of runs is expected"),
    ("learning_curves", ["new"], "new: no finished episode is there; one or more is expected"),
    ("learning_curves", ["torn"], "run.h5: cannot be read ("),
    ("learning_curves", ["run", "--by", "colour"], "--by colour: no such setting; one of a2c.adam_eps, a2c.clip_rewards"),
    ("learning_curves", ["run", "--by", "exchange,"], "--by : no such setting; one of"),
    (
        "learning_curves",
        ["run", "--out", "curves.txt"],
        "--out curves.txt: a file name that ends in .png, .pdf, .svg",
    ),
    ("learning_curves", ["run", "--out", "no/where.png"], "--out no/where.png: there is no folder no"),
    ("learning_curves", ["run", "--out", "folder.png"], "folder.png"),
    ("learning_curves", ["run", "--statistic", "iqm"], "--statistic iqm: no run of beam_rider"),
    ("learning_curves", [], "no run is named"),
    ("staleness", ["alone"], "no run of --exchange gossip or server on 2 agents or more is there"),
    ("throughput", ["new"], "new: fewer than two updates are there"),
    ("scores", ["run"], "run: no evaluation is there; python -m gala_mpi.evaluate run makes one"),
    (
        "scores",
        ["run", "--table", "t.doc"],
        "--table t.doc: a file name that ends in .csv, .md, .parquet, .tex, .txt",
    ),
    ("compare", ["run"], "--by method: all runs are in one group, GALA ring; two or more groups are expected"),
    ("compare", ["run", "alone", "--base", "A3C"], "--base A3C: no such group; one of GALA ring, independent is expected"),
    ("robustness", ["run"], "CartPole-v1: no threshold is known; --threshold CartPole-v1 SCORE is expected"),
    ("consensus", ["run"], "run: no sketches of 2 agents or more are there"),
    ("gradients", ["alone"], "alone: no sketches of 2 agents or more are there"),
    ("simulate", ["alone"], "alone: a run of --exchange gossip"),
    ("simulate", ["run", "--topologies", "star"], "--topologies star: one of ring, exponential"),
]


@pytest.mark.parametrize("script, arguments, said", BAD)
def test_bad_input_is_one_line_and_status_2(tmp_path, script, arguments, said, monkeypatch, capsys):
    from script import main

    make(tmp_path / "run", 0)
    make(tmp_path / "alone", 1, agents=1, exchange="none")
    begin(tmp_path / "new")
    begin(tmp_path / "torn")
    cut(tmp_path / "torn" / "run.h5")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    options = {**SCRIPTS, "simulate": simulate.Simulate}[script]
    with pytest.raises(SystemExit) as ended:
        main(sys.modules[script].answer, options, "", arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and said in error and error.count("\n") == 1 and error.startswith(f"{script}.py: ")


def test_a_kill_leaves_the_old_file(tmp_path):
    """Killed in the middle of the second writing: what the first one wrote is there, whole."""
    path = tmp_path / "numbers.csv"
    program = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from script import Table, write_csv
def rows(last):
    yield from ([n] for n in range(100_000))
    yield [last()]
path = Path(sys.argv[2])
write_csv(Table(("n",), rows(lambda: 7)), path)
write_csv(Table(("n",), rows(lambda: os._exit(9))), path)
"""
    done = subprocess.run([sys.executable, "-c", program, str(ANALYSIS), str(path)], check=False)
    assert done.returncode == 9
    lines = path.read_text().split()
    assert (lines[0], lines[-1], len(lines)) == ("n", "7", 100_002)


def test_bad_input_of_the_real_command(tmp_path):
    done = command("learning_curves", "nope", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "learning_curves.py: nope: nothing is there; a run directory is expected\n"
    assert command("learning_curves", "nope", "--colour", cwd=tmp_path).returncode == 2


# The page.

CHROMIUM = shutil.which("chromium")
LOOK = """
<script>
window.onerror = message => { document.title = "error " + message };
window.onload = () => {
  const shown = element => element.getClientRects().length > 0;
  const look = () => ({ rows: [...document.querySelectorAll("tr.g0")].filter(shown).length,
    parts: [...document.querySelectorAll('[id*="-g0-"]')].filter(shown).length,
    others: [...document.querySelectorAll("tr.g1, [id*='-g1-']")].filter(shown).length });
  const figures = [...document.querySelectorAll("figure svg")].map(svg => ({
    wide: svg.getBoundingClientRect().width > 100, alt: svg.getAttribute("aria-label").length }));
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const before = look();
  document.getElementById("group-0").click();
  document.body.dataset.seen = JSON.stringify({ figures: figures, wide: wide, before: before, after: look() });
};
</script>
"""


def written(states: list[Path]) -> str:
    found, problems = load(states)
    return report.page(found, problems, report.Report(runs=tuple(states)))


@pytest.fixture(scope="module")
def finished(states) -> str:
    return written(states["finished"])


def test_the_page_holds_every_answer_and_loads_nothing(states):
    text = written(states["live"])
    for name in SCRIPTS:
        assert f'<section id="{name}">' in text, name
        chapter = text.partition(f'<section id="{name}">')[2].partition("</section>")[0]
        [sentence] = re.findall(r'<p class="answer">(.+?)</p>', chapter)
        assert f"</a></dt><dd>{sentence}</dd>" in text.partition("</section>")[0]  # in short, at the top
    assert "60% done; read as far as it goes" in text
    assert "<script" not in text
    for address in re.findall(r'(?:src|href)="([^"]*)"', text):
        assert address.startswith(("data:", "#")), address


def test_every_reference_of_the_page_has_one_target(finished):
    names = re.findall(r'\bid="([^"]*)"', finished)
    assert len(set(names)) == len(names) > 100
    aimed = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', finished))
    assert {a or b for a, b in aimed} <= set(names)


def test_a_chapter_that_fails_does_not_lose_the_page(states, monkeypatch, capsys):
    monkeypatch.setattr(report.gradients, "answer", lambda found, options: 1 / 0)
    few = {module: options for module, options in report.CHAPTERS.items() if module.__name__ in ("gradients", "staleness")}
    monkeypatch.setattr(report, "CHAPTERS", few)
    text = written(states["finished"])
    assert "gradients.py: ZeroDivisionError: division by zero" in text and 'id="gradients"' not in text
    assert 'id="staleness"' in text
    assert capsys.readouterr().err == "report.py: gradients.py: ZeroDivisionError: division by zero; its chapter is left out\n"


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(finished, tmp_path, width):
    """Every figure is there and visible and has words for those who cannot see it; nothing is wider than the screen; a group
    that is not wanted is nowhere, and the others are where they were."""
    if not CHROMIUM:
        missing = pytest.fail if os.geteuid() == 0 else pytest.skip  # the Makefile installs it where it may
        missing("needs chromium: install Debian's package chromium")
    page = tmp_path / "framed.html"
    page.write_text(finished.replace("</body>", LOOK + "</body>"))
    # A window of headless Chromium is 500 pixels wide at least; a frame is as narrow as it is told to be.
    outer = tmp_path / "outer.html"
    outer.write_text(f'<iframe src="framed.html" style="width:{width}px;height:900px;border:0"></iframe>')
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--virtual-time-budget=5000"]
    flags += ["--enable-logging=stderr", "--log-level=0", "--window-size=1400,1000", f"--user-data-dir={tmp_path / 'profile'}"]
    script = "<script>onload = () => document.body.dataset.seen = frames[0].document.body.dataset.seen</script>"
    outer.write_text(outer.read_text() + script)
    done = subprocess.run([CHROMIUM, *flags, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=300)
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert len(seen["figures"]) == len(SCRIPTS)
    assert all(figure["wide"] and figure["alt"] > 30 for figure in seen["figures"])
    assert seen["wide"] <= 0
    assert seen["before"]["rows"] > 5 and seen["before"]["parts"] > 5 and seen["before"]["others"] > 10
    assert seen["after"] == {"rows": 0, "parts": 0, "others": seen["before"]["others"] - shared(page.read_text())}


def shared(text: str) -> int:
    """Return how many rows are of the first two groups together: of comparisons."""
    return len(re.findall(r'<tr class="g0 g1">', text))


def test_bad_input_of_the_report(tmp_path):
    make(tmp_path / "run", 0)
    for arguments, said in [
        (["nope"], "report.py: nope: nothing is there"),
        (["run", "--out", "r.pdf"], "report.py: --out r.pdf: a file name that ends in .html is expected"),
        (["run", "--by", "colour"], "report.py: --by colour: no such setting"),
    ]:
        done = command("report", *arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "") and said in done.stderr, done.stderr


# Exports.


def test_csv_files_hold_the_tables(tmp_path):
    run_dir = make(tmp_path / "r", 0, number=7)
    done = command("export", "r", "--to", "out", "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = open_run(run_dir)
    for rank in range(2):
        with open(tmp_path / "out" / "r" / f"rank{rank:05d}" / "episodes.csv") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["score"]) for row in rows] == run.episodes(rank)["score"].tolist()


def test_event_files_hold_the_scalars(tmp_path):
    """Read by another's reader; a step of more bytes, and numbers that are not finite, among them."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    run_dir = begin(tmp_path / "r", agents=2)
    for rank in range(2):
        rows = update_rows(1, 200)
        rows["age"][::2] = np.nan
        write(run_dir, rank, 0, updates=rows, episodes=episode_rows(np.random.default_rng(rank), 30))
    for _ in range(2):  # the second time it replaces what is there
        done = command("export", "r", "--to", "out", "--format", "tensorboard", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "out" / "r" / "rank00001").glob("events.out.tfevents.*")
    data, found = file.read_bytes(), []
    while data:  # records: length, its checksum, an event, its checksum
        length = int.from_bytes(data[:8], "little")
        if len(found) % 50 == 0:
            assert int.from_bytes(data[8:12], "little") == masked_crc32c(data[:8])
            assert int.from_bytes(data[12 + length : 16 + length], "little") == masked_crc32c(data[12 : 12 + length])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        assert event.file_version == ("" if found or event.summary.value else "brain.Event:2")
        found += [(event.step, value.tag, value.simple_value, event.wall_time) for value in event.summary.value]
        data = data[16 + length :]
    run = open_run(run_dir)
    for table, column in (("episodes", "score"), ("updates", "age"), ("updates", "entropy")):
        rows = run.updates(1) if table == "updates" else run.episodes(1)
        rows = rows[np.isfinite(rows[column])]
        expected = [(row["steps"] * 2, f"{table}/{column}", row[column], row["hours"] * 3600) for row in rows]
        assert [event for event in found if event[1] == f"{table}/{column}"] == expected
    steps = [event[0] for event in found]
    assert min(steps) < 2**14 < max(steps)  # of two bytes, and of three


SCRIPT = "import script, throughput; {} script.main(throughput.answer, throughput.Options, '', ['r'])"


@pytest.mark.parametrize(
    "program, file, status",
    [
        (SCRIPT.format(""), "r/throughput.png", 0),  # at the table
        (SCRIPT.format("script.print_table = lambda table: None;"), "r/throughput.png", 0),  # after the table
        ("import export; export.main(['r', '--to', 'out', '--format', 'csv'])", "out/r/rank00001/updates.csv", 0),
        ("import report; report.main(['r', '--out', 'r.html'])", "r.html", 0),
    ],
)
def test_a_reader_that_leaves_is_no_error(tmp_path, program, file, status):
    """`| head`: here the reader has left before anything is written."""
    make(tmp_path / "r", 0, number=7)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ANALYSIS)},
    )
    os.close(writing)
    assert all(line.startswith("note: ") for line in done.stderr.splitlines()), done.stderr
    assert done.returncode == status
    assert (tmp_path / file).exists()


# Nothing of the training is needed, and the package need not be installed.


def test_a_report_needs_nothing_of_the_training(states, tmp_path):
    """Every script answers on it, but for those below."""
    done = run_without(TRAINING, ANALYSIS / "report.py", *states["elastic"], "--out", "r.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "r.html").read_text()
    assert all(f'<section id="{name}">' in page for name in SCRIPTS)


def test_a_simulation_needs_nothing_of_the_training(tmp_path):
    measured_run(tmp_path / "r", 2, "gossip", 0.1)
    done = run_without(TRAINING, ANALYSIS / "simulate.py", "r", "--validate", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "simulate.png").exists()


def test_a_csv_export_needs_nothing_of_the_training(tmp_path):
    make(tmp_path / "r", 0, number=7)
    done = run_without(TRAINING, ANALYSIS / "export.py", "r", "--to", "out", "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "r" / "rank00001" / "updates.csv").exists()


def test_what_a_laptop_needs_is_what_the_project_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for line in (ANALYSIS / "requirements.txt").read_text().splitlines():
        assert line.startswith("#") or line in project, line
