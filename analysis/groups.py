"""Runs that are compared: opened, and gathered by their settings."""

from __future__ import annotations

import math
import operator
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
from alarms import alarms
from gala_mpi.run import Run, RunError, find_runs, open_run

# Settings that say where and how long, not what was learnt: runs that differ in these alone are repetitions.
INCIDENTAL = {"run_dir", "resume", "replay", "seed", "total_steps", "wall_minutes"}
INCIDENTAL |= {"env_workers", "checkpoint_minutes", "checkpoint_updates", "keep_checkpoints", "sketch_updates"}
SIZE = {"agents", "environments", "num_envs"}
MOST_VALUES = 12  # of a setting, named in an error
MOST_CHARACTERS = 80  # of what tells a graph from others of its name
BUDGETS = ("total_steps", "wall_minutes")
OLD_NAMES = {"simulators": "environments", "sticky": "atari.sticky"}  # of settings, still taken


@dataclass(frozen=True)
class Group:
    """Runs of one env that agree in some settings.

    Attributes:
        label: these settings in words.
        apart: what tells it from others whose label differs by a number alone; empty: there are none.
    """

    env: str
    label: str
    runs: list[Run]
    apart: str = ""

    @property
    def name(self) -> str:
        return self.env if self.label == self.env else f"{self.env} {self.label}"


def load(paths: Iterable[str | Path], where: str = "") -> tuple[list[Run], list[str]]:
    """Return the runs at `paths` whose settings are as `where` says (see `chosen`), and a line for each that cannot be opened.

    Raises:
        RunError: nothing is left.
    """
    found, problems = [], []
    for path in find_runs(paths):
        try:
            found.append(open_run(path))
        except RunError as error:
            problems.append(str(error))
    if not found:
        raise RunError(problems[0] + (f" (and {len(problems) - 1} more problems)" if problems[1:] else ""))
    return chosen(found, where), problems


CONDITION = re.compile(r"\s*([\w.-]+?)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*")
COMPARED = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def chosen(found: list[Run], where: str) -> list[Run]:
    """Return the runs of which all conditions hold, "env=pong,seed<3"; all runs where there is none.

    Raises:
        RunError: a condition makes no sense, or no run is left.
    """
    left = found
    for condition in where.split(",") if where else ():
        holds = meaning(condition, found)
        before, left = left, [run for run in left if holds(run)]
        if not left:
            name = CONDITION.fullmatch(condition)[1]
            raise RunError(f"--where {where}: no run is left by {condition.strip()}; {values_of(before, setting(name))}")
    return left


def meaning(condition: str, found: list[Run]) -> Callable[[Run], bool]:
    """Return what tells whether a condition, "seed<3", holds of a run. Raises RunError where it makes no sense."""
    if not (parts := CONDITION.fullmatch(condition)):
        raise RunError(f"--where {condition}: a setting, one of {', '.join(COMPARED)}, and a value are expected, as env=pong")
    name, sign, word = setting(parts[1]), parts[2], parts[3]
    check_setting(name, found, "--where")
    kinds = {type(value) for run in found if (value := run.settings().get(name)) is not None}
    ordered, said = sign not in ("=", "!="), f"--where {condition.strip()}: "
    if ordered and not kinds <= {int, float}:
        raise RunError(f"{said}{name} is no number; = or != is expected; {values_of(found, name)}")
    wanted = None if word == "unset" and not ordered else _typed(word, kinds)
    if wanted is None and (ordered or word != "unset"):
        raise RunError(f"{said}a value like those of the runs is expected; {values_of(found, name)}")

    def holds(run: Run) -> bool:
        value = _first_line(run.settings().get(name))
        return not (ordered and value is None) and COMPARED[sign](value, wanted)

    return holds


def _typed(word: str, kinds: set[type]) -> Any:
    """Return a word as a value of one of these kinds; None: it is none."""
    if bool in kinds and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if kinds & {int, float}:
        try:
            number = float(word)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    return word if word and (str in kinds or not kinds) else None


def values_of(found: list[Run], name: str) -> str:
    """Say which values a setting has in these runs."""
    values = sorted({_first_line(run.settings().get(name)) for run in found}, key=_rank)
    words = ["unset" if value is None else f"{value}" for value in values]
    more = f" and {len(words) - MOST_VALUES} more" if len(words) > MOST_VALUES else ""
    return f"{name} is {', '.join(words[:MOST_VALUES])}{more} in these runs"


def setting(name: str) -> str:
    """Return a setting's name as runs know it."""
    name = name.strip().replace("-", "_")
    return OLD_NAMES.get(name, name)


def check_setting(name: str, found: list[Run], flag: str) -> None:
    """Raise RunError where no run has such a setting."""
    known = sorted(set().union(*(run.settings() for run in found)))
    if name not in known:
        raise RunError(f"{flag} {name}: no such setting; one of {', '.join(known)} is expected")


def grouped(found: list[Run], by: str, known: Iterable[Run] = ()) -> list[Group]:
    """Return the runs that agree in their env and in the settings `by` ("exchange,topology"), ordered by these.

    Args:
        known: all runs, where `found` are some of them: a group is called the same whichever of them are there.

    Raises:
        RunError: there is no such setting.
    """
    names = [setting(name) for name in by.split(",")]
    for name in names:
        check_setting(name, found, "--by")
    described, members = {}, {}
    for run in [*found, *known]:
        values = [run.settings().get(name) for name in names]
        described[tuple(map(_rank, values))] = ", ".join(map(_describe, names, values))
    called = told_apart(described)
    for run in found:
        values = tuple(_rank(run.settings().get(name)) for name in names)
        members.setdefault((run.config["env"], values), []).append(run)
    apart = {values: _graphs(values) if called[values] != described[values] else "" for values in described}
    return [Group(env, called[values], members[env, values], apart[values]) for env, values in sorted(members)]


def told_apart(described: dict[tuple, str]) -> dict[tuple, str]:
    """Return the same labels, with a number behind each that several have, as graphs of one name on other nodes."""
    alike: dict[str, list[tuple]] = {}
    for values in sorted(described):
        alike.setdefault(described[values], []).append(values)
    return {
        values: f"{label} ({number})" if len(several) > 1 else label
        for label, several in alike.items()
        for number, values in enumerate(several, 1)
    }


def labels(groups: list[Group]) -> list[str]:
    """Return the labels of all groups, each once: a label's place here is its colour."""
    return list(dict.fromkeys(group.label for group in groups))


def _rank(value: Any) -> tuple[int, Any]:
    """Sort values of a setting: unset, then numbers, then words."""
    return (0, 0) if value is None else (2, value) if isinstance(value, str) else (1, value)


def _describe(name: str, value: Any) -> str:
    return _first_line(value) if isinstance(value, str) else f"{name} {'unset' if value is None else value}"


def _graphs(values: tuple[tuple[int, Any], ...]) -> str:
    """Say what follows the first lines of settings: a graph's text, or the node of each agent."""
    more = [" ".join(rest.split()) for _, value in values if isinstance(value, str) and (rest := value.partition("\n")[2])]
    words = [f"agents on nodes {rest}" if rest.replace(" ", "").isdigit() else f"the graph {rest}" for rest in more]
    return ", ".join(textwrap.shorten(text, MOST_CHARACTERS, placeholder=" …") for text in words)


def _first_line(value: Any) -> Any:
    """Return a setting's value in one line: a graph from a file is its name and its whole text."""
    return value.partition("\n")[0] if isinstance(value, str) else value


def mixtures(groups: list[Group], apart: set[str] = frozenset()) -> list[str]:
    """Return a line for each group whose label has a number, on what the number stands for; for each whose runs differ in a
    setting and are no mere repetitions, but for settings in `apart`; and for whatever else makes runs of a game unequal."""
    lines = list(
        {group.label: f"{group.label}: {group.apart}, as in {group.runs[0].path}" for group in groups if group.apart}.values()
    )
    for group in groups:
        members = [run.settings() for run in group.runs]
        names = sorted(set().union(*members) - INCIDENTAL - apart)
        differing = [name for name in names if len({repr(member.get(name)) for member in members}) > 1]
        if differing:
            lines.append(f"{group.name}: joins runs that differ in {', '.join(differing)} (--by tells them apart)")
    return lines + unequal(groups)


def unequal(groups: list[Group]) -> list[str]:
    """Return a line for each game and each thing of its runs' budgets and versions that is not the same in all of them."""
    lines = []
    for env in dict.fromkeys(group.env for group in groups):
        members = [(group, run) for group in groups if group.env == env for run in group.runs]
        of_runs = [origin(run) for _, run in members]
        for name in dict.fromkeys(name for origins in of_runs for name in origins):
            whose: dict[str, dict[str, int]] = {}
            for (group, _), origins in zip(members, of_runs):
                if name in origins:
                    counts = whose.setdefault(origins[name], {})
                    counts[group.label] = counts.get(group.label, 0) + 1
            if len(whose) > 1:
                lines.append(f"{env}: its runs differ in {name}: {'; '.join(map(_counted, whose, whose.values()))}")
    return lines


def origin(run: Run) -> dict[str, str]:
    """Return what a run was given and what wrote it, as far as it says: budgets, versions, commit, packages."""
    settings = run.settings()
    said = {name: "unset" if settings.get(name) is None else f"{settings[name]:,}" for name in BUDGETS}
    for name, words in (("gala_mpi", "version of gala_mpi"), ("commit", "commit")):
        if values := list(dict.fromkeys(str(start[name])[:10] for start in run.starts if start.get(name))):
            said[words] = " then ".join(values)
    return said


def _counted(value: str, counts: dict[str, int]) -> str:
    return f"{value} ({', '.join(f'{number} of {label}' for label, number in counts.items())})"


def stretches(run: Run) -> list[Run]:
    """Return the run in pieces of one start or several, each with the settings and agents that it had then. A run that was not
    resumed with others is one piece. Starts that did no update are left out."""
    if len(run.starts) < 2:
        return [run]
    pieces, first = [], 0
    for number in range(len(run.starts)):
        piece = run.during(number, number)
        if pieces and len(piece.newest) and not changes(pieces[-1], piece):
            pieces[-1] = run.during(first, number)
        elif len(piece.newest):
            pieces.append(piece)
            first = number
    return pieces or [run]


def changes(before: Run, after: Run) -> list[str]:
    """Say which settings, that matter, two runs differ in: "num_envs 8 → 32"."""
    one, other = before.settings(), after.settings()
    names = [name for name in other if name not in INCIDENTAL | {"method", "environments"} and one.get(name) != other[name]]
    return [f"{name} {_first_line(one.get(name))} → {_first_line(other[name])}" for name in names]


def incomplete(found: list[Run]) -> list[str]:
    """Return a line for each run that has not ended, or whose agents have not all done the same; that has skipped updates, or
    went wrong otherwise, or cannot be read whole. Ask after reading: it brings more to light."""
    lines = [f"{run.path}: {run.state}; read as far as it goes" for run in found if run.state != "finished"]
    for run in found:
        lines += [f"{run.path}: {words}" for words in [*changed(run), *absent(run)]]
        agents = ", ".join(f"{number:,} of agent {rank}" for rank, number in run.skipped.items())
        lines += [f"{run.path}: updates skipped because a number was not finite: {agents}"] if agents else []
        lines += [f"{run.path}: {alarm}" for alarm in alarms(run)]
    return lines + [problem for run in found for problem in run.problems]


def changed(run: Run) -> list[str]:
    """Return a line for each resume that changed settings."""
    pieces = stretches(run)
    steps = [f"{int(piece.newest['steps'].sum()):,} steps" for piece in pieces]
    return [
        f"was resumed with other settings after {done}: {', '.join(changes(before, after))}"
        for before, after, done in zip(pieces, pieces[1:], steps)
    ]


def absent(run: Run) -> list[str]:
    """Return a line for agents that were lost, for those that ended long before the run, and for those without an update."""
    early = {rank: hours for rank, hours in run.early.items() if not math.isnan(hours)}
    idle = sorted(run.early.keys() - early.keys())
    lines = [f"{_agents(idle)} done no update"] if idle else []
    for words, ranks in (("been lost", early.keys() & run.lost), ("ended before the others", early.keys() - run.lost)):
        if ranks:
            last = sorted(early[rank] for rank in ranks)
            scale, unit = (1, "h") if run.hours > 0.1 else (3600, "s")
            when = " to ".join(dict.fromkeys(f"{scale * hours:.3g}" for hours in (last[0], last[-1])))
            lines.append(f"{_agents(sorted(ranks))} {words}; the last update was at {when} of {scale * run.hours:.3g} {unit}")
    return lines


def _agents(ranks: list[int]) -> str:
    return f"agent {ranks[0]} has" if len(ranks) == 1 else f"agents {', '.join(map(str, ranks))} have"
