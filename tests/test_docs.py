"""What the documentation promises: links lead somewhere, files that it names exist, and commands work as they stand.

Every command in README.md, CONTRIBUTING.md and docs/ falls under the first line of RULES that matches it. Most are run in a
small version: two ranks, few steps, a small run in place of runs/... Of those that need minutes, root, another MPI or a
cluster, at least the target, script or module must exist, and its flags must be accepted. A command that no line covers fails.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

import launch
from gala_mpi import config, config_checks
from launch import ROOT, mpirun

SKIPPED = {"runs", "build"}  # folders that are not part of the repository, as hidden ones are not
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ELSEWHERE = {ROOT / "docs" / "extending.md"}  # its commands are run by tests/commands/test_extending.py
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
# How a line outside of blocks marked `sh` begins if it is a command all the same.
PROGRAM = re.compile(r"(make \S|python3? (-\w|\S+\.py)|(mpirun|srun) .*python |sbatch .*\.sh|pip install|conda |cp |git )")


# Markdown.


def ours(pattern: str) -> list[Path]:
    """The files of the repository whose names match."""
    folders = [path for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in SKIPPED]
    return sorted([*ROOT.glob(pattern), *(path for folder in folders for path in folder.rglob(pattern))])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The contents of the page's blocks in a language."""
    return [body for _, named, body in FENCE.findall(page.read_text()) if named == language]


def prose(page: Path) -> str:
    """The page without its blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose(page), re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.add(next(name for name in (slug, *(f"{slug}-{n}" for n in range(1, 100))) if name not in found))
    return found


@pytest.mark.parametrize("page", ours("*.md"), ids=name_of)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(INLINE.sub("", prose(page))):
        address = urlsplit(target)
        if address.scheme:
            assert address.scheme in ("http", "https") and "." in address.netloc, target
            continue
        path = (page.parent / address.path).resolve() if address.path else page
        assert path.exists() and path.is_relative_to(ROOT), f"{target}: no such file"
        assert not address.fragment or address.fragment in anchors(path), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_names_its_language(page):
    assert {language for _, language, _ in FENCE.findall(page.read_text())} <= {"sh", "text", "python", "yaml", "toml", "diff"}


def test_the_readme_is_one_page_and_begins_with_a_sentence_and_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    title, sentence, commands = text.split("\n\n")[:3]
    assert title == "# gala_mpi"
    assert sentence.endswith(".") and not re.search(r"[.!?]\s+[A-Z]", sentence)
    assert [line.split("#")[0].strip() for line in commands.splitlines()] == ["```sh", "make train", "make test", "```"]


def test_the_tree_in_the_readme_is_that_of_the_repository():
    (tree,) = (block for block in blocks(ROOT / "README.md", "text") if block.startswith("gala_mpi/"))
    for line in tree.splitlines():
        inside = line.startswith("  ")
        names = re.findall(r"(?<=  )(\w+(?:\.py|/))(?=\s)", f"  {line.strip()} ") if inside else [line.split()[0]]
        assert names, line
        for name in names:
            assert (ROOT / ("gala_mpi" if inside else "") / name).exists(), name


def test_files_that_the_pages_name_exist():
    """`topology/graphs.py` may stand for gala_mpi/topology/graphs.py."""
    there = [f"/{name_of(path)}" for path in ours("*.*")]
    missing = []
    for page in PAGES:
        text = prose(page) if page in ELSEWHERE else page.read_text()  # whose changes add files
        for name in re.findall(r"(?<![\w/.-])[\w./-]+\.(?:py|sh|pml|toml|yml)\b", text):
            name = name.removeprefix("../")
            yours = name in ("my_figure.py", "my_loop.py", "my_networks.py", "my_poles.py", "my_run.toml", "my_training.py")
            if not yours and not any(path.endswith(f"/{name}") for path in there):
                missing.append(f"{name_of(page)}: {name}")
    assert missing == []


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


# Commands, and what is done with each.


def commands_of(page: Path) -> Iterator[str]:
    """Every command on a page: the lines of blocks marked `sh`, and indented lines and inline code that look like one."""
    for block in blocks(page, "sh"):
        yield from block.replace("\\\n", " ").splitlines()
    rest = prose(page)
    yield from (line for line in re.findall(r"^ {4,}(.*)$", rest, re.MULTILINE) if PROGRAM.match(line))
    yield from (code for code in INLINE.findall(rest) if PROGRAM.match(code))


def commands() -> dict[str, str]:
    """Every command of the documentation, without its comment, and the first page that has it."""
    found: dict[str, str] = {}
    for page in PAGES:
        for line in () if page in ELSEWHERE else commands_of(page):
            command = re.sub(r"(^|\s+)#.*", "", line).strip()
            if command:
                found.setdefault(command, name_of(page))
    return found


COMMANDS = commands()
GOSSIP, ALLREDUCE, PONG, FIRST = "runs/gossip", "runs/allreduce", "runs/pong", "runs/first-20260101-000000"
STEPS = 2000  # of a small run
SMALL = {"--num-envs": "4", "--precision": "fp32", "--total-steps": "400", "--run-dir": "runs/new"}


def replaced(words: list[str], flags: dict[str, str]) -> list[str]:
    """`words` with these flags in place of what they say of them."""
    kept = [word for i, word in enumerate(words) if word not in flags and (i == 0 or words[i - 1] not in flags)]
    return [*kept, *(word for flag in flags.items() for word in flag)]


def with_small_runs(words: list[str], only: str = "") -> list[str]:
    """`words` with a small run, or a folder of them, in place of every run that they read; with `only` always that one."""

    def small(word: str) -> str:
        if only and re.match(r"runs/|\$run", word):
            return only
        if word == "runs" or word.startswith("runs/study"):
            return "runs"
        return ALLREDUCE if "allreduce" in word else GOSSIP

    return [small(word) if re.match(r"runs(/|$)|\$run$", word) else word for word in words]


def under_mpi(words: list[str], ranks: int = 2) -> list[str]:
    """mpirun with as many ranks as a small version has."""
    return ["mpirun", "-n", str(ranks), *words[words.index("python") :]]


def small_training(words: list[str]) -> list[str]:
    ranks = 4 if "my_graph.txt" in words else 2
    if "--actors" in words:
        ranks = 1 + int(words[words.index("--actors") + 1])
    if "--replay" in words:
        return under_mpi(with_small_runs(words))
    if "--resume" in words:
        return under_mpi(replaced(with_small_runs(words), {"--total-steps": str(STEPS + 400)}))
    env = {} if "--env" in words else {"--env": "CartPole-v1"}
    return under_mpi(replaced(words, SMALL | env), ranks)


def small_evaluation(words: list[str]) -> list[str]:
    film = "--video" in words
    flags = {"--episodes": "1"} | ({"--policies": "mean"} if film else {})
    return under_mpi(replaced(with_small_runs(words, only=PONG if film else ""), flags))


def small_analysis(words: list[str]) -> list[str]:
    words = [word.replace("runs/pong", "runs/gossip") for word in with_small_runs(words)]
    return replaced(words, {"--ranks": "8", "--updates": "5"}) if "simulate.py" in words[1] else words


def runs(smaller: Callable[[list[str]], list[str]]) -> Callable[[str, Laboratory], None]:
    """Run a command in the version that `smaller` makes of its words."""

    def run(command: str, laboratory: Laboratory) -> None:
        words = smaller(shlex.split(command))
        result = laboratory.result(tuple(words))
        assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}\n{result.stderr}"

    run.smaller = smaller
    return run


def parses_as_training(command: str, _: Laboratory) -> None:
    """Training with another launcher than ours, or with what is not installed: its flags are accepted."""
    words = shlex.split(command)
    config_checks.check(config.parse(words[words.index("gala_mpi.train") + 1 :]))


def has_its_flags(command: str, laboratory: Laboratory) -> None:
    """A program that takes minutes or root: its help knows every flag, and what kind of benchmark there is. (tests/commands
    runs them.)"""
    program, words = program_of(command)
    there = importlib.util.find_spec(program[1]) if program[0] == "-m" else (ROOT / program[0]).exists()
    assert there, f"there is no {program[-1]}"
    if words:
        knows(laboratory.result(help_of(program)), words)


def program_of(command: str) -> tuple[list[str], list[str]]:
    """A Python program and its words, up to `--`. A benchmark without flags is a word of gala_mpi.bench."""
    words = shlex.split(command)
    words = words[words.index("python") + 1 :]
    words = words[: words.index("--")] if "--" in words else words
    length = 2 if words[0] == "-m" else 1
    length += words[1:2] == ["gala_mpi.bench"] and len(words) > 3
    return words[:length], words[length:]


def help_of(program: list[str]) -> tuple[str, ...]:
    return ("python", *(program if program[0] == "-m" else [str(ROOT / program[0])]), "--help")


def knows(help: subprocess.CompletedProcess, words: list[str]) -> None:
    """A program's help says what these flags are (and these words, but for the values of flags)."""
    assert help.returncode == 0, help.stderr
    before = ["", *words]
    for word in (word for last, word in zip(before, words) if word.startswith("-") or not last.startswith("-")):
        name = word.partition("=")[0]
        assert "/" in name or re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", help.stdout), f"{name} is unknown"


def is_a_job(command: str, laboratory: Laboratory) -> None:
    """sbatch: the script is there, and the program that it starts takes the flags behind its name."""
    words = shlex.split(re.sub(r"^\w+=\$\((.*)\)$", r"\1", command))
    (at,) = (i for i, word in enumerate(words) if word.endswith(".sh"))
    own = {word.partition("=")[0] for word in words[1:at]}
    assert own <= {"--ntasks", "--nodes", "--parsable", "--dependency", "--array", "--time"}, own
    script, flags = ROOT / words[at], words[at + 1 :]
    assert os.access(script, os.X_OK), f"{script} is not there"
    starts = re.findall(r"python (-m gala_mpi\.(?:train|evaluate)|analysis/\S+\.py)|exec bash \S*atari", script.read_text())
    if script.name in ("evaluate.sh", "report.sh"):
        if any(flag.startswith("-") for flag in flags):
            knows(laboratory.result(help_of(starts[0].split())), flags)
    else:
        assert starts, f"{script} starts no program that this test knows"
        config_checks.check(config.parse(flags))


def is_a_target(command: str, _: Laboratory) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([\w.%-]+):(?!=)", makefile, re.MULTILINE)
    for word in shlex.split(command)[1:]:
        name, assigned, _value = word.partition("=")
        if assigned:
            assert re.search(rf"^{name} \?=", makefile, re.MULTILINE), f"the Makefile has no variable {name}"
        else:
            assert name in targets or any(re.fullmatch(t.replace("%", r"\d+"), name) for t in targets), f"no target {name}"


def names_files(command: str, _: Laboratory) -> None:
    """An installation, a test or a tool: the files that it names are there."""
    names = [word for word in shlex.split(command) if re.search(r"\w\.(txt|yml|py|pml|sh)$", word)]
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "docs" / name).exists(), name


def is_a_module(command: str, _: Laboratory) -> None:
    assert importlib.util.find_spec(re.search(r"-m (\S+)", command)[1]), command


def finds_the_first_run(command: str, laboratory: Laboratory) -> None:
    said = laboratory.shell(f"{command}; echo $run")
    assert said.stdout.strip() == FIRST, said


# The first that matches counts. Those that run come with how they are made small.
RULES: list[tuple[str, Callable[[str, Laboratory], None]]] = [
    (r"make( [\w=-]+)+$", is_a_target),
    (r"(srun|mpirun --with-ft ulfm) .*python -m gala_mpi\.train", parses_as_training),
    (r"((mpirun -n \d+|srun .*)? ?)python -m gala_mpi\.(doctor|bench)", has_its_flags),
    (r"mpirun -n \d+ python -m gala_mpi\.train --env envpool:", parses_as_training),  # trained by test_envpool_runs.py
    (r"mpirun -n \d+ python -m gala_mpi\.train --env beam:", parses_as_training),  # trained by test_examples.py
    (r"mpirun -n \d+ python -m gala_mpi\.train", runs(small_training)),
    (r"mpirun -n \d+ python -m gala_mpi\.evaluate", runs(small_evaluation)),
    (r"mpirun -n \d+ python (-m mpi4py my_loop|my_training)\.py$", runs(under_mpi)),
    (r"mpirun -n \d+ python (-m mpi4py )?examples/", names_files),  # run by test_examples.py
    (r"python -m gala_mpi\.(watch|topology|export) ", runs(with_small_runs)),
    (r"python -m gala_mpi\.(train|api_doc|run\.columns_doc)$", is_a_module),
    (r"python analysis/\w+\.py ", runs(small_analysis)),
    (r"python my_figure\.py$", runs(list)),
    (r"(mpirun -n \d+ )?python benchmarks/", has_its_flags),
    (r"benchmarks/gpu\.sh$", names_files),
    (r"(job=\$\()?sbatch ", is_a_job),
    (r"run=\$\(ls ", finds_the_first_run),
    (r"python -m pytest ", names_files),
    (r"(pip install|conda env create|cp docs/transport\.pml|spin -[at] ) ?", names_files),
    (r"(python3 -m venv \.venv|\. \.venv/bin/activate|apt-get install [\w -]+)$", names_files),
]


def rule(command: str) -> Callable[[str, Laboratory], None] | None:
    return next((exercise for pattern, exercise in RULES if re.match(pattern, command)), None)


# Running.


class Laboratory:
    """Runs small versions of commands, each in a folder of its own with small runs in it.

    Those that are announced are run in one job of two ranks and in one process, one after the other (several.py). One that has
    not gone well there is run again by itself.

    Args:
        folder: where; it has `runs`, the small runs.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._pool = ThreadPoolExecutor(2)
        self._batches: dict[tuple[str, ...], Future[dict[tuple[str, ...], subprocess.CompletedProcess]]] = {}
        self._results: dict[tuple[str, ...], subprocess.CompletedProcess] = {}

    def announce(self, commands: Iterable[tuple[str, ...]]) -> None:
        """Begin to run commands in the background, each once."""
        commands = dict.fromkeys(commands)
        for ranks, head in ((2, ("mpirun", "-n", "2", "python", "-m")), (1, ("python",))):
            some = [words for words in commands if words[: len(head)] == head and words[len(head)] != "mpi4py"]
            if some:
                self._batches |= dict.fromkeys(some, self._pool.submit(self._run_together, ranks, some))

    def result(self, words: tuple[str, ...]) -> subprocess.CompletedProcess:
        if words not in self._results:
            together = self._batches[words].result() if words in self._batches else {}
            self._results[words] = together.get(words) or self._run(words)
        return self._results[words]

    def shell(self, script: str) -> subprocess.CompletedProcess:
        return subprocess.run(["bash", "-c", script], cwd=self._folder, capture_output=True, text=True, check=True)

    def python(self, code: str) -> subprocess.CompletedProcess:
        """Run a page's Python block where a user would, beside the run directories."""
        return self._start([sys.executable, "-c", code], self._folder)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _run(self, words: tuple[str, ...]) -> subprocess.CompletedProcess:
        """Run a command by itself."""
        folder = self._room()
        if words[0] == "mpirun":
            result = mpirun(int(words[2]), *words[4:], cwd=folder, timeout=300)
        else:
            result = self._start([sys.executable, *words[1:]], folder)
        missing = [name for name in _made(words) if not (folder / name).exists()]
        assert result.returncode or not missing, f"{shlex.join(words)} has not made {missing}"
        shutil.rmtree(folder)
        return result

    def _run_together(self, ranks: int, commands: list[tuple[str, ...]]) -> dict[tuple[str, ...], subprocess.CompletedProcess]:
        """Run commands of so many ranks one after the other. Return the results of those that went well."""
        rooms = {words: self._room() for words in commands}
        programs = [[str(folder), words[words.index("python") + 1 :]] for words, folder in rooms.items()]
        table = self._folder / f"programs-{ranks}.json"
        table.write_text(json.dumps(programs))
        words, limit = [str(ROOT / "tests" / "several.py"), str(table)], 30 * len(commands) + 30
        if ranks > 1:
            mpirun(ranks, *words, cwd=self._folder, timeout=limit)
        else:
            self._start([sys.executable, *words], self._folder, limit)
        results = {}
        for words, folder in rooms.items():
            ended = [folder / f"status-{rank}" for rank in range(ranks)]
            went_well = all(path.exists() and path.read_text() == "0" for path in ended)
            if went_well and all((folder / name).exists() for name in _made(words)):
                said = [(folder / name).read_text() for name in ("stdout", "stderr")]
                results[words] = subprocess.CompletedProcess(words, 0, *said)
            shutil.rmtree(folder)
        return results

    def _room(self) -> Path:
        """Make a folder with all that the pages tell a reader to have."""
        folder = Path(tempfile.mkdtemp(dir=self._folder, prefix="command-"))
        shutil.copytree(self._folder / "runs", folder / "runs")
        (folder / "docs").mkdir()
        (folder / "analysis").symlink_to(ROOT / "analysis")
        (folder / "my_graph.txt").write_text(graph())
        (folder / "my_figure.py").write_text(figure())
        (folder / "my_poles.py").write_text(poles())
        (folder / "my_loop.py").write_text(loop())
        (folder / "my_training.py").write_text(training())
        (folder / "my_run.toml").write_text(settings())
        return folder

    def _start(self, words: list[str], folder: Path, limit: float = 300) -> subprocess.CompletedProcess:
        env = launch.environment() | {"COLUMNS": "200", "MPLBACKEND": "Agg"}
        return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=limit)


def _made(words: tuple[str, ...]) -> list[str]:
    """The files that a command is told to make."""
    told = ("--out", "--to", "--table", "--video", "--torch", "--onnx")
    made = [words[i + 1] for i, word in enumerate(words) if word in told and words[-1] != "--help"]
    return [*made, *(["my_figure.png"] if "my_figure.py" in words else [])]


def poles() -> str:
    """The example of a module of one's own in docs/environments.md."""
    (example,) = (block for block in blocks(ROOT / "docs" / "environments.md", "text") if "gymnasium.register(" in block)
    return example


def loop() -> str:
    """The training loop of one's own in docs/library.md."""
    (script,) = (block for block in blocks(ROOT / "docs" / "library.md", "python") if "Gossip(" in block)
    return script


def training() -> str:
    """The program that calls training in docs/library.md."""
    (script,) = (block for block in blocks(ROOT / "docs" / "library.md", "python") if "gala_mpi.train(" in block)
    return script


def settings() -> str:
    """The file of settings in docs/tutorial.md."""
    (example,) = blocks(ROOT / "docs" / "tutorial.md", "toml")
    return example


def graph() -> str:
    """The example of a graph in docs/graphs.md."""
    (example,) = blocks(ROOT / "docs" / "graphs.md", "text")
    return example


def figure() -> str:
    """The script of the tutorial that draws a figure."""
    (script,) = (block for block in blocks(ROOT / "docs" / "tutorial.md", "python") if "savefig" in block)
    return script


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory, request) -> Iterator[Laboratory]:
    folder = tmp_path_factory.mktemp("docs")
    cart, pong = ("--env", "CartPole-v1", "--num-envs", 4), ("--env", "pong", "--num-envs", 2)
    flags = ("--precision", "fp32", "--sketch-updates", 10)
    with ThreadPoolExecutor(2) as pool:
        train = functools.partial(pool.submit, mpirun, 2, "-m", "gala_mpi.train", *flags, cwd=folder, timeout=300)
        started = [
            train(*cart, "--total-steps", STEPS, "--run-dir", GOSSIP),
            train(*cart, "--total-steps", STEPS, "--run-dir", ALLREDUCE, "--exchange", "allreduce"),
            train(*pong, "--total-steps", 40, "--run-dir", PONG),
        ]
    for job in started:
        assert job.result().returncode == 0, job.result().stderr
    evaluated = mpirun(2, "-m", "gala_mpi.evaluate", GOSSIP, "--episodes", 2, cwd=folder, timeout=300)
    assert evaluated.returncode == 0, evaluated.stderr
    shutil.copytree(folder / GOSSIP, folder / FIRST)
    laboratory = Laboratory(folder)
    asked = [
        item.callspec.params for item in request.session.items if item.path == Path(__file__) and hasattr(item, "callspec")
    ]
    laboratory.announce(itertools.chain.from_iterable(_needed(each["command"]) for each in asked if "command" in each))
    yield laboratory
    laboratory.close()


def _needed(command: str) -> Iterator[tuple[str, ...]]:
    """What is run for a command's test."""
    exercise = rule(command)
    if exercise is has_its_flags and program_of(command)[1]:
        yield help_of(program_of(command)[0])
    elif hasattr(exercise, "smaller"):
        yield tuple(exercise.smaller(shlex.split(command)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_works_as_it_stands(command, laboratory):
    exercise = rule(command)
    assert exercise, f"{COMMANDS[command]}: `{command}` is not covered by RULES"
    exercise(command, laboratory)


SCRIPTS = {
    f"{page}-{n}": block
    for page in ("tutorial", "resume", "library", "graphs")
    for n, block in enumerate(blocks(ROOT / "docs" / f"{page}.md", "python"))
}


@pytest.mark.parametrize("block", SCRIPTS)
def test_a_script_works_as_it_stands(block, laboratory):
    if "savefig" in SCRIPTS[block]:
        pytest.skip("run as my_figure.py")
    code = SCRIPTS[block].replace("runs/...", GOSSIP)
    result = laboratory.python(code)
    assert result.returncode == 0 and result.stdout, result.stderr
