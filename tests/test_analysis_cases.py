"""Every script of the analysis on runs of every kind: no traceback, and whatever is odd about a run is said."""

from __future__ import annotations

import html
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
from synthetic import Synthetic, energy, episodes, mixes, sketches, updates
from test_analysis_scripts import SCRIPTS

import export
import report
import script
import simulate
import stats
from gala_mpi.run import RunError
from groups import incomplete, load

EVERY = SCRIPTS | {"simulate": simulate.Simulate}
EXCHANGES = ("gossip", "allreduce")


def write(
    run: Synthetic,
    rank: int,
    number: int = 100,
    after: int = 0,
    hours: float = 0.0,
    room: int = 0,
    sketched: int = 25,
    **changes,
):
    """All tables of a rank's next file; `changes`: table → column → its values."""
    rows = updates(number, after=after, begin=hours)
    gossip = run.settings["exchange"] == "gossip"
    tables = {
        "updates": rows,
        "episodes": episodes(rows, score=np.arange(after, after + number), every=2),
        "mixes": mixes(rows, peer=(rank - 1) % run.agents, every=2)[: None if gossip else 0],
        "sketches": sketches(rows, every=25, seed=rank),
        "energy": energy(number // 10, 100, begin=hours, after=after)[: None if rank == 0 else 0],
    }
    for table, columns in changes.items():
        for name, values in columns.items():
            tables[table][name] = values
    run.write(rank, after, room, **tables)


def whole(path: Path, agents: int = 2, **settings) -> Synthetic:
    """A run that has done all that it was to do, and was evaluated."""
    run = Synthetic(path, agents, **{"total_steps": 80 * 100 * agents, "wall_minutes": None, **settings})
    for rank in range(agents):
        write(run, rank)
    return run.evaluate(3, {-1: [1, 2], **{rank: [3, 4] for rank in range(agents)}})


def both(folder: Path, make: Callable[[Path, str], object]) -> None:
    """A run for each exchange."""
    for exchange in EXCHANGES:
        make(folder / exchange, exchange)


# The cases: each fills a folder, and returns what is said of it by whoever answers.


def live(folder: Path) -> str:
    for exchange in EXCHANGES:
        run = Synthetic(folder / exchange, exchange=exchange, total_steps=80 * 400).evaluate(1, {-1: [1, 2]})
        for rank in range(2):
            write(run, rank, 100 + rank, room=300)
    return "50% done; read as far as it goes"


def resumed_with_other_settings(folder: Path) -> str:
    def make(path: Path, exchange: str) -> None:
        run = whole(path, exchange=exchange, num_envs=8, total_steps=80 * 400).resume(checkpoint=3, num_envs=32)
        for rank in range(2):
            write(run, rank, after=100, hours=100 / 3600)

    both(folder, make)
    return "was resumed with other settings after 16,000 steps: num_envs 8 → 32"


def resumed_on_other_ranks(folder: Path) -> str:
    """Four, then two; and two, then four."""
    for exchange, before, agents in (("gossip", 4, 2), ("allreduce", 2, 4)):
        run = whole(folder / exchange, before, exchange=exchange, total_steps=80 * 100 * (before + agents))
        run.resume(agents, checkpoint=3)
        for rank in range(agents):
            dealt = {"steps": 80 * (100 * before // agents + np.arange(1, 101))}
            write(run, rank, after=100, hours=100 / 3600, updates=dealt)
    return "was resumed with other settings after 32,000 steps: agents 4 → 2"


def lost(folder: Path) -> str:
    def make(path: Path, exchange: str) -> None:
        run = Synthetic(path, 3, exchange=exchange, total_steps=80 * 220).evaluate(3, {-1: [1, 2]})
        for rank, number in enumerate((100, 100, 30)):
            write(run, rank, number)
        run.lose(2, 30)

    both(folder, make)
    return "agent 2 has been lost; the last update was at 30 of 100 s"


def revived(folder: Path) -> str:
    """A rank was lost after 30 updates of 100; then all do 50 more, that one from its checkpoint at 20."""
    for exchange in EXCHANGES:
        run = Synthetic(folder / exchange, 3, exchange=exchange, total_steps=80 * 1000).evaluate(3, {-1: [1, 2]})
        for rank, number in enumerate((100, 100, 30)):
            write(run, rank, number)
        run.resume(checkpoint=3)
        for rank, after in enumerate((100, 100, 20)):
            write(run, rank, 50, after, after / 3600)
    return "37% done"


def without_rows(folder: Path) -> str:
    for exchange in EXCHANGES:
        run = Synthetic(folder / exchange, 3, exchange=exchange, total_steps=80 * 300).evaluate(3, {-1: [1, 2]})
        for rank in range(2):
            write(run, rank)
        run.write(2)
    return "agent 2 has done no update"


def without_episodes(folder: Path) -> str:
    """Of one run of each exchange; of another one, none has ended."""
    for exchange in EXCHANGES:
        whole(folder / f"{exchange}-whole", exchange=exchange)
        run = Synthetic(folder / exchange, exchange=exchange)
        for rank in range(2):
            run.write(rank, updates=updates(3))
    return f"{folder}/gossip: "


def not_finite(folder: Path) -> str:
    """A number here and there."""
    some = np.where(np.arange(100) % 7 == 3, np.nan, 1.0)
    columns = {name: some for name in ("policy_loss", "value_loss", "entropy", "grad_norm", "step_norm", "cpu")}
    nowhere = {name: np.full(10, np.nan) for name in ("gpu_joules", "node_joules", "cores_busy")}
    for exchange in EXCHANGES:
        run = Synthetic(folder / exchange, exchange=exchange, total_steps=80 * 200).evaluate(3, {-1: [1, np.nan]})
        for rank in range(2):
            power = {"energy": {"cpu_joules": some[:10], **nowhere}} if rank == 0 else {}
            gradients = {"gradient": np.array([[1.0], [np.nan], [1.0], [np.inf]])}
            scores = {"score": some[::2]}
            write(run, rank, updates={**columns, "skipped": np.arange(100) // 50}, episodes=scores, sketches=gradients, **power)
    return "updates skipped because a number was not finite: 1 of agent 0, 1 of agent 1"


def odd_names(folder: Path) -> str:
    both(folder / "α $x_{1$ ünï & co", lambda path, exchange: whole(path, exchange=exchange))
    return ""


def many(folder: Path) -> str:
    for seed in range(30):
        for exchange in EXCHANGES:
            run = Synthetic(folder / f"{exchange}-{seed}", exchange=exchange, seed=seed, total_steps=80 * 50)
            for rank in range(2):
                write(run, rank, 25)
            run.evaluate(3, {-1: [1, 2], 0: [3], 1: [4]})
    return ""


def two_games(folder: Path) -> str:
    for env in ("pong", "CartPole-v1"):
        both(folder / env, lambda path, exchange: whole(path, exchange=exchange, env=env))
    return ""


def damaged(folder: Path) -> str:
    """Among whole runs one with a rank's file that is cut short, and three runs: no HDF5, no settings, a senseless number."""
    both(folder, lambda path, exchange: whole(path, exchange=exchange))
    file = whole(folder / "cut", seed=1).path / "metrics" / "rank00001.h5"
    file.write_bytes(file.read_bytes()[:9999])
    for name in ("text", "unset", "senseless"):
        run = whole(folder / name)
        if name == "text":
            (run.path / "run.h5").write_text("no HDF5")
            continue
        with h5py.File(run.path / "run.h5", "r+") as file:
            file.attrs["config"] = (
                "[]" if name == "unset" else str(file.attrs["config"]).replace('"num_envs": 16', '"num_envs": 0')
            )
    (folder / "gossip" / "metrics" / "rank00000-notes.h5").write_text("not ours")
    return f"{folder}/senseless/run.h5: cannot be read (num_envs 0; a number of 1 or more is expected)"


CASES = [live, resumed_with_other_settings, resumed_on_other_ranks, lost, revived, without_rows, without_episodes]
CASES += [not_finite, odd_names, two_games, damaged]


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Callable[[Callable], tuple[Path, str]]:
    """Return a case's folder, made once, and what is said of it."""
    made: dict[Callable, tuple[Path, str]] = {}

    def fill(case: Callable) -> tuple[Path, str]:
        if case not in made:
            folder = tmp_path_factory.mktemp(case.__name__)
            made[case] = folder, case(folder)
        return made[case]

    return fill


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(stats, "RESAMPLES", 20)
    yield
    plt.close("all")


def called(value: str | Callable) -> str:
    return getattr(value, "__name__", value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name, case", [*itertools.product(EVERY, CASES), ("simulate", many)], ids=called)
def test_no_traceback_and_nothing_is_left_out_in_silence(filled, name, case):
    folder, expected = filled(case)
    found, problems = load([folder])
    threshold = {"threshold": {"CartPole-v1": 50.0}} if name == "robustness" and case is two_games else {}
    smaller = {"ranks": (4,), "updates": 20} if name == "simulate" else {}
    try:
        said = sys.modules[name].answer(found, EVERY[name](runs=(), **threshold, **smaller))
    except RunError as error:
        assert re.search(REFUSED.get((name, case), "$^"), str(error)), error
        return
    notes = [*problems, *said.notes, *incomplete(found)]
    assert said.table.rows and said.sentence and (not expected or any(expected in note for note in notes)), notes
    assert all("\n" not in note for note in notes)


REFUSED = {
    ("simulate", two_games): "runs of one env are expected; these have CartPole-v1, pong",
    (
        "simulate",
        without_rows,
    ): r"a run of --exchange gossip \(2 ranks, no --slow-rank or --mix-steps, more than 6 updates of each\) is expected",
    ("consensus", without_rows): "no sketches",
    ("gradients", without_rows): "no sketches",
}


@pytest.mark.parametrize("case", [odd_names])
@pytest.mark.parametrize("name", SCRIPTS)
def test_figures_are_written(filled, name, case, tmp_path):
    folder, _ = filled(case)
    where = tmp_path / "ü $2$.png"
    script.main(sys.modules[name].answer, SCRIPTS[name], "", [str(folder), "--by", "exchange,run_dir", "--out", str(where)])
    assert where.read_bytes().startswith(b"\x89PNG") and where.with_suffix(".csv").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cases", [CASES, [many]], ids=["runs of every kind on one page", "60 runs"])
def test_the_page_has_every_script_and_says_what_is_odd(filled, cases, capsys):
    folders, expected = zip(*map(filled, cases))
    found, problems = load(folders)
    text = html.unescape(report.page(found, problems, report.Report(runs=folders)))
    assert capsys.readouterr().err == ""
    for name in SCRIPTS:
        chapter = text.partition(f'<section id="{name}">')[2].partition("</section>")[0]
        assert "<svg" in chapter and "<td" in chapter and re.search(r'<p class="answer">.+\.</p>', chapter), name
    assert [said for said in expected if said not in text] == []
    assert [run.path for run in found if f"<td>{run.path}</td>" not in re.sub(' class="(short|long)"', "", text)] == []


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", [*CASES, many], ids=called)
def test_exports_have_every_row(filled, case, tmp_path, capsys):
    folder, expected = filled(case)
    export.main([str(folder), "--to", str(tmp_path)])
    assert expected in capsys.readouterr().err
    found, _ = load([folder])
    for run in found[:6]:
        for rank in range(len(run.parts)):
            name = run.path.relative_to(folder) if case is two_games else run.path.name  # of these, two have one name
            mine = tmp_path / name / f"rank{rank:05d}"
            assert (mine / export.EVENTS).exists()
            for table in ("updates", "episodes", "mixes", "energy"):
                rows = (mine / f"{table}.csv").read_text().splitlines()
                assert len(rows) == 1 + len(getattr(run, table)(rank))
