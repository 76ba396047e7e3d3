"""How far do agents drift apart, and does the theory hold?

    python analysis/consensus.py runs
    python analysis/consensus.py runs --by topology,staleness --out consensus.pdf

Draws the distance of agents to their mean over updates against the bound of Assran et al. 2019 (the ε-ball).

Definitions, with x_i(k) the parameters of agent i after update k, s_i(k) its optimiser's step (learning rate included), y_i(k)
= x_i(k-1) + s_i(k) what it publishes, and x_i(k) = w_ii y_i(k) + Σ_j w_ij y_j(v_j) for the messages it mixed:

* distance of an agent: ‖x_i(k) - x̄(k)‖, of agents at equal updates k, from the sketches (relative standard error 1.1%).
  distance: of all agents, D(k) = (Σ_i ‖x_i(k) - x̄(k)‖²)^½; no agent's is larger.
* bound: what the triangle inequality makes of what happened: every x_i(k) is a sum of steps with coefficients that the table
  `mixes` gives, x_i(k) - x̄(k) = Σ_s Σ_j A_s[i, j] s_j(s), hence D(k) ≤ Σ_s ‖A_s‖₂ |S(s)|, |S(s)|² = Σ_j ‖s_j(s)‖².
  Late, missing and early messages are in A_s. In lock-step A_s = (I - 11ᵀ/n) P^(k+1-s), and the bound is Σ_s β^(k+1-s) |S(s)|,
  that is α Σ β^(k+1-s) ‖G_s‖ with the real steps for α G.
* a priori: αβL/(1-β) with αL = max |S(s)| and β the graph's second singular value. Of a whole period of p rounds that can be
  taken in any order it is αL (p - 1 + pβ/(1-β)). Where they cannot (hierarchical, base), fewer than 2p - 1 rounds may hold
  no whole period from its beginning, and it is αL (2p - 2 + pβ/(1-β)). It holds in lock-step, and is given for no other run:
  where every agent mixed exactly the messages of its own update, at every update, and no rank was lost.
* ratio: D(k) over the bound at the same update. More than 105.5% is an alarm: something is wrong that the sketches' error
  (five times 1.1%) does not explain.
* rounding: 10 · 2⁻²³ (Σ_i ‖x_i‖²)^½, what the float32 numbers of parameters and sketches can make of a distance that is 0.
  Where the bound is smaller, as on a complete graph in lock-step (0), there is no ratio, and only a distance above the
  rounding is an alarm.

At most 100 updates of a run are looked at, evenly spread. After a resume no bound is computed: messages from before it may
have come from updates that it undid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import checkout  # noqa: F401
from gala_mpi import topology
from gala_mpi.exchange import EXCHANGES
from gala_mpi.run import Run, RunError
from gala_mpi.run.layout import lost
from gala_mpi.topology import Graph, Topology
from groups import Group, grouped, labels, mixtures
from mixing import Mixing
from script import Answer, Options, Table, legend, line_style, main, panels, progress

MOST_UPDATES = 100
NEGLIGIBLE = 1e-10  # of a coefficient
SMALL = 1e-6  # a norm of A_s beside the largest
ROUNDING = 10 * 2.0**-23  # of parameters: see the top of this file
ALARM = 1 + 5 * 0.011  # a ratio above it


@dataclass(frozen=True)
class Drift:
    """Distances of one run; (updates,) arrays, NaN where there is no bound.

    Attributes:
        agents: ‖x_i - x̄‖, [updates, agents].
        rounding: the distance that may be rounding alone.
        prior: the a priori bound; NaN where it is none.
        broken: updates left out because a sketch is not finite.
    """

    run: Run
    updates: np.ndarray
    agents: np.ndarray
    rounding: np.ndarray
    bound: np.ndarray
    prior: float
    beta: float
    broken: int

    @property
    def distance(self) -> np.ndarray:
        return np.sqrt((self.agents**2).sum(axis=1))

    @property
    def ratio(self) -> np.ndarray:
        return np.divide(self.distance, self.bound, out=np.full(len(self.bound), np.nan), where=self.bound > self.rounding)

    @property
    def alarms(self) -> np.ndarray:
        """Whether the distance is above its bound, at each update."""
        zero = self.bound <= self.rounding
        return np.where(zero, self.distance > self.bound + self.rounding, self.ratio > ALARM)


def answer(found: list[Run], options: Options) -> Answer:
    sketched = [run for run in found if run.agents > 1 and all(len(run.sketches(rank)) for rank in range(run.agents))]
    if not sketched:
        raise RunError(f"{found[0].path}: no sketches of 2 agents or more are there (--sketch-updates of gala_mpi.train)")
    groups = grouped(sketched, options.by, known=found)
    drifts = {id(run): drift(run) for run in sketched}
    drawn = [group for group in groups if any(len(drifts[id(run)].updates) for run in group.runs)]
    if not drawn:
        raise RunError(f"{sketched[0].path}: no two agents have sketches of equal updates yet")
    order = labels(grouped(found, options.by))  # a group has the same colour in every script
    figure, axes = panels(len(drawn), height=2.9)
    for ax, group in zip(axes, drawn):
        draw(ax, group, [drifts[id(run)] for run in group.runs], order.index(group.label))
    legend(figure, axes)
    table, points = tables(drawn, drifts)
    sentence = answered([drifts[id(run)] for group in drawn for run in group.runs if len(drifts[id(run)].updates)])
    notes = [f"{run.path}: no sketches, or a single agent; left out" for run in found if run not in sketched]
    notes += [f"{run.path}: resumed; no bound" for run in sketched if len(run.starts) > 1 and reads_over_a_graph(run)]
    notes += mixtures(groups, apart={"agents", "environments"})
    notes += [
        f"{run.path}: ALARM: the distance is above its bound at {d.alarms.sum()} of {len(d.alarms)} updates, first at {first}"
        for run, d in ((run, drifts[id(run)]) for run in sketched)
        for first in d.updates[d.alarms][:1]
    ]
    why = "it holds in lock-step alone, if all steps are of finite length"
    notes += [f"{d.run.path}: no a priori bound: {why}" for d in drifts.values() if no_prior(d)]
    notes += [note for d in drifts.values() for note in gaps(d)]
    alt = f"Distance of agents to their mean over updates, with its bound. {sentence}"
    return Answer(table, figure, alt, points, notes, sentence)


def gaps(d: Drift) -> list[str]:
    """Return what is missing of one run's updates, a line each."""
    lines = [f"{d.run.path}: {d.broken} updates left out: a number of a sketch is not finite"] if d.broken else []
    absent = int(np.isnan(d.bound).sum())
    if absent and reads_over_a_graph(d.run) and len(d.run.starts) == 1:
        why = "it rests on rows that cannot be read, or on steps whose length is not finite"
        lines.append(f"{d.run.path}: no bound at {absent} of {len(d.bound)} updates: {why}")
    return lines


def no_prior(d: Drift) -> bool:
    return bool(np.isfinite(d.bound).any() and np.isnan(d.prior))


def answered(drifts: list[Drift]) -> str:
    """Return the answer in a sentence."""
    last = [d.distance[-1] for d in drifts]
    reach = " to ".join(dict.fromkeys(f"{distance:.3g}" for distance in (min(last), max(last))))
    words = f"At the last update looked at, the agents' distance to their mean is {reach}"
    known = np.concatenate([d.ratio[np.isfinite(d.ratio)] for d in drifts])
    broken = sum(bool(d.alarms.any()) for d in drifts)
    if broken:
        return f"{words}; in {broken} of {len(drifts)} runs it is above its bound, which the theory rules out."
    if len(known):
        return f"{words}; it never exceeds {100 * known.max():.1f}% of its bound: the theory holds."
    if any(np.isfinite(d.bound).any() for d in drifts):
        return f"{words}; the bound is 0, and the distance no more than rounding: the theory holds."
    return f"{words}; there is no bound for these runs."


def reads_over_a_graph(run: Run) -> bool:
    """Return whether the run's agents mix each other's parameters over a graph: the bound is of these."""
    exchange = EXCHANGES.get(run.config["exchange"])
    return bool(exchange and exchange.graph)


def drift(run: Run) -> Drift:
    """Return the distances of a run's agents, and their bound where there is one."""
    sketches = [run.sketches(rank) for rank in range(run.agents)]
    common = sorted(set.intersection(*(set(table["update"].tolist()) for table in sketches)))
    chosen = np.array(
        [common[i] for i in np.unique(np.linspace(0, len(common) - 1, MOST_UPDATES).astype(int))] if common else [], int
    )
    x = np.array([t["parameters"][np.searchsorted(t["update"], chosen)] for t in sketches]).astype(
        float
    )  # [agents, updates, 4096]
    whole = np.isfinite(x).all(axis=(0, 2)) if len(chosen) else np.zeros(0, bool)
    chosen, x, broken = chosen[whole], x[:, whole], int((~whole).sum())
    agents = np.linalg.norm(x - x.mean(axis=0), axis=2).T
    rounding = ROUNDING * np.linalg.norm(x, axis=(0, 2))
    if not reads_over_a_graph(run) or len(run.starts) > 1 or not len(chosen):
        return Drift(run, chosen, agents, rounding, np.full(len(chosen), np.nan), np.nan, np.nan, broken)
    mixing, steps = Mixing(run), step_norms(run)
    bounds = np.array([bound(mixing, steps, update) for update in progress(chosen.tolist(), f"{run.path}: bound")])
    beta = run.starts[-1].get("beta", np.nan)
    prior = steps.max() * a_priori(graph_of(run), beta) if np.isfinite(beta) and in_lock_step(run) else np.nan
    return Drift(run, chosen, agents, rounding, bounds, prior, beta, broken)


def graph_of(run: Run) -> Topology:
    return topology.build(Graph.from_stored(run.config["topology"]), run.agents)


def a_priori(graph: Topology, beta: float) -> float:
    """Return the a priori bound in steps of the largest length."""
    ratio = beta / (1 - beta) if beta < 1 - 1e-12 else np.inf  # such a graph need not bring its agents together
    return (graph.period - 1) * (1 if graph.commutes else 2) + graph.period * ratio


def in_lock_step(run: Run) -> bool:
    """Return whether all agents mixed the messages of their own update and no others, at every update; none was lost.

    In some rounds of some graphs an agent reads nobody.
    """
    graph = graph_of(run)
    for rank in range(run.agents):
        mixes, updates = run.mixes(rank), run.updates(rank)["update"]
        mixed = updates[updates <= mixes["update"].max(initial=0)]  # a live run has yet to write the newest
        mixed = mixed[np.isin(mixed % graph.period, [k for k in range(graph.period) if graph.in_peers(rank, k)])]
        if not len(mixed) or (mixes["version"] != mixes["update"]).any() or not np.isin(mixed, mixes["update"]).all():
            return False
    return not lost(run.path)


def step_norms(run: Run) -> np.ndarray:
    """Return |S(s)|, the length of all agents' steps at update s together, float64 [updates + 1]; 0 at 0; NaN: not finite."""
    tables = [run.updates(rank) for rank in range(run.agents)]
    squares = np.zeros(max(table["update"].max(initial=0) for table in tables) + 1)
    for table in tables:
        squares[table["update"]] += np.where(np.isfinite(table["step_norm"]), table["step_norm"], np.nan).astype(float) ** 2
    return np.sqrt(squares)


def bound(mixing: Mixing, steps: np.ndarray, update: int) -> float:
    """Return Σ_s ‖A_s‖₂ |S(s)| at `update`; NaN where some message it rests on was not read.

    Goes back from all x_i(update) - x̄(update) through everything they are made of.
    """
    n = mixing.agents
    outputs = [output for rank in range(n) if (output := mixing.output(rank, update))]
    if len(outputs) < n:
        return np.nan
    nodes, weights = (np.concatenate(parts) for parts in zip(*outputs))
    readers = np.repeat(np.arange(n), [len(output[0]) for output in outputs])
    shares, rest = [], 0.0
    for block, share, _, left in mixing.back(nodes, weights[:, None] * (np.eye(n) - 1 / n)[readers]):
        shares.append(share)
        if (most := np.abs(left).max(initial=0)) < NEGLIGIBLE:  # averaging never makes them larger
            earlier = mixing.version[: block.first].max(initial=0)
            rest = most * len(left) * n * earlier * np.nanmax(steps)  # what all earlier steps could still add
            break
    end = block.first + sum(map(len, shares))
    versions, ranks = mixing.version[block.first : end], mixing.rank[block.first : end]
    first = versions.min()
    a = np.zeros((versions.max() + 1 - first, n, n))  # A_s transposed: [s, agent that steps, agent that has it]
    a[versions - first, ranks] = np.concatenate(shares[::-1])
    return float(spectral_norms(a) @ steps[first : first + len(a)]) + rest


def spectral_norms(matrices: np.ndarray) -> np.ndarray:
    """Return the largest singular value of each matrix, [m, n, n] → [m]; of one that adds next to nothing, the Frobenius norm,
    which is no smaller."""
    norms = np.sqrt(np.einsum("mij,mij->m", matrices, matrices))
    large = norms > SMALL * norms.max(initial=0)
    squares = np.linalg.eigvalsh(matrices[large] @ matrices[large].transpose(0, 2, 1))  # faster than singular values
    norms[large] = np.sqrt(np.maximum(squares[:, -1], 0))
    return norms


def draw(ax, group: Group, drifts: list[Drift], number: int) -> None:
    colour = line_style(number)["color"]
    for n, d in enumerate(drift for drift in drifts if len(drift.updates)):
        first = n == 0
        ax.fill_between(d.updates, d.agents.min(axis=1), d.agents.max(axis=1), color=colour, alpha=0.2, linewidth=0)
        ax.plot(d.updates, d.distance, color=colour, label="_" if not first else f"{group.label}: D(k)")
        if np.isfinite(d.bound).any():
            ax.plot(
                d.updates,
                d.bound,
                color="black",
                linestyle="--",
                linewidth=1,
                label="bound from what happened" if first else "_",
            )
        if np.isfinite(d.prior) and d.prior > d.rounding.max():
            ax.axhline(d.prior, color="black", linestyle=":", linewidth=1, label="a priori bound αβL/(1-β)" if first else "_")
    some = [d.distance.max() for d in drifts if len(d.updates)]
    if max(some) > 0:
        ax.set_yscale("log")
    title = (
        f"{group.name}, {', '.join(map(str, sorted({d.run.agents for d in drifts})))} agents; band: smallest to largest agent"
    )
    ax.set(title=title, xlabel="update", ylabel="distance to the mean\n(norm of parameters)")


def tables(groups: list[Group], drifts: dict[int, Drift]) -> tuple[Table, Table]:
    people = Table(
        ("run", "group", "agents", "β", "distance, last", "bound, last", "largest ratio (%)", "median ratio (%)", "a priori")
    )
    points = Table(("run", "env", "group", "update", "distance", "smallest_agent", "largest_agent", "bound"))
    for group in groups:
        for run in group.runs:
            d = drifts[id(run)]
            if not len(d.updates):
                continue
            known = d.ratio[np.isfinite(d.ratio)]
            largest, middle = (100 * known.max(), 100 * np.median(known)) if len(known) else (np.nan, np.nan)
            name = (str(run.path), group.name, run.agents)
            people.rows.append((*name, d.beta, d.distance[-1], d.bound[-1], largest, middle, d.prior))
            for row in zip(d.updates, d.distance, d.agents.min(axis=1), d.agents.max(axis=1), d.bound):
                points.rows.append((str(run.path), group.env, group.label, *row))
    return people, points


if __name__ == "__main__":
    main(answer, Options, __doc__)
