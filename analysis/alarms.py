"""What tells that a run went wrong, from the table `updates` of its agents; every script says so.

The thresholds stand between what goes wrong and what good runs did: some 80 agents in runs of CartPole, Taxi, Blackjack,
FrozenLake, MiniGrid and HalfCheetah. In these the gradient's level (below) never rose more than 3 times above the highest one
before, resident memory less than 1%, and the entropy of the last 100 updates reached 0.06 nats and more.

* not finite: a loss, the entropy, or the length of a gradient or step is NaN or infinite in some update.
* skipped: updates from which nothing was learnt, as the agent counted them.
* entropy collapsed: it is within 0.01 nats of 0 in each of the last 100 updates. A policy of two actions is there if it takes
  one of them with probability 0.9987 or more in every state: it explores nothing.
* exploding: the level of the gradient's or step's length, its median over 100 successive updates, is over 100 times the highest
  level before. A gradient is also over 10 times `max_grad_norm`, to which it is clipped: where rewards are rare, the first ones
  make it leap from next to nothing.
* memory grows: the median of resident memory rises from each quarter of the newest start's updates to the next, and the last is
  more than 10% and 64 MiB above the second. (The first holds the start.)
* the clock goes back: an update ended before the one before it. Whatever is over hours, such as rates, is wrong then.
"""

from __future__ import annotations

import numpy as np

import checkout  # noqa: F401
from gala_mpi.run import Run
from gala_mpi.run.parts import counted

NUMBERS = ("policy_loss", "value_loss", "entropy", "grad_norm", "step_norm")
WINDOW = 100  # updates
COLLAPSED = 0.01  # nats
LEAP, CLIPPED = 100, 10
GROWTH, MEBIBYTES = 1.1, 64


def alarms(run: Run) -> list[str]:
    """Return a line for each thing that went wrong with a run; the agents that it befell, and where it began, are named."""
    found: dict[str, list[str]] = {}
    for rank in range(len(run.parts)):
        rows = run.updates(rank)
        checks = [*not_finite(rows), *collapsed(rows), *exploding(rows, clip(run)), *turned_back(rows)]
        checks += growing(newest_start(run, rank, rows))
        for what, where in checks:
            found.setdefault(what, []).append(f"agent {rank} {where}")
    return [f"ALARM: {what}: {shortened(agents)}" for what, agents in found.items()]


def not_finite(rows: np.ndarray) -> list[tuple[str, str]]:
    lines = []
    for name in NUMBERS:
        broken = ~np.isfinite(rows[name])
        unrecorded = np.isnan(rows[name]).all() and not counted(rows["skipped"])  # by an older version
        if broken.any() and not unrecorded:
            first = rows["update"][broken.argmax()]
            lines.append((f"{name} is not finite", f"in {broken.sum():,} updates from {first:,} on"))
    return lines


def collapsed(rows: np.ndarray) -> list[tuple[str, str]]:
    last = rows["entropy"][-WINDOW:]
    gone = len(last) == WINDOW and bool((np.abs(last) < COLLAPSED).all())
    return [("the entropy has collapsed to 0", f"at update {rows['update'][-1]:,}")] if gone else []


def exploding(rows: np.ndarray, clip: float) -> list[tuple[str, str]]:
    """Look for leaps; `clip`: the length to which gradients are clipped."""
    lines = []
    for name, least in (("grad_norm", CLIPPED * clip), ("step_norm", 0.0)):
        windows = len(rows) // WINDOW
        levels = np.median(np.nan_to_num(rows[name][: windows * WINDOW].reshape(windows, WINDOW)), axis=1)
        before = np.maximum.accumulate(levels)[:-1]
        leaps = (levels[1:] > LEAP * before) & (before > 0) & (levels[1:] > least)
        if leaps.any():
            at = leaps.argmax() + 1
            times = f"{levels[at] / before[at - 1]:,.0f} times its highest level before, from update"
            lines.append((f"{name} explodes", f"to {times} {rows['update'][at * WINDOW]:,} on"))
    return lines


def growing(rows: np.ndarray) -> list[tuple[str, str]]:
    if len(rows) < 4 * WINDOW or not np.isfinite(rows["rss"]).all():
        return []
    quarters = np.array([np.median(part) for part in np.array_split(rows["rss"].astype(float), 4)])
    rises = (np.diff(quarters) > 0).all() and quarters[3] > max(GROWTH * quarters[1], quarters[1] + MEBIBYTES)
    return [("memory grows", f"from {quarters[1]:,.0f} to {quarters[3]:,.0f} MiB")] if rises else []


def turned_back(rows: np.ndarray) -> list[tuple[str, str]]:
    steps = 3600 * np.diff(rows["hours"])
    back = steps < 0
    where = f"by {-steps.min(initial=0):,.3g} s at update {rows['update'][1:][steps.argmin()]:,}" if back.any() else ""
    return [("the clock goes back", where)] if back.any() else []


def clip(run: Run) -> float:
    """Return the length to which the run's learner clips gradients; 0: it is not known."""
    return next((float(value) for name, value in run.settings().items() if name.endswith(".max_grad_norm")), 0.0)


def newest_start(run: Run, rank: int, rows: np.ndarray) -> np.ndarray:
    """Return the rows of a rank's newest metrics file."""
    return rows[rows["update"] > run.parts[rank][-1].after_update] if run.parts[rank] else rows


def shortened(agents: list[str], most: int = 4) -> str:
    more = f"; and {len(agents) - most} more agents" if len(agents) > most else ""
    return "; ".join(agents[:most]) + more
