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
* a priori: αβL/(1-β) with αL = max |S(s)| and β the graph's second singular value (of a whole period of p rounds:
  αL (p - 1 + pβ/(1-β))). It holds for lock-step; elsewhere it is a landmark.
* ratio: D(k) over the bound at the same update. Above 100% something is wrong.

At most 200 updates of a run are looked at, evenly spread. After a resume no bound is computed: messages from before it may
have come from updates that it undid.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

import checkout  # noqa: F401
from gala_mpi.exchange import EXCHANGES
from gala_mpi.run import Run, RunError
from groups import Group, grouped, labels, mixtures
from script import Answer, Options, Table, legend, line_style, main, panels

MOST_UPDATES = 200
NEGLIGIBLE = 1e-10  # of a coefficient

Node = tuple[int, int]  # agent and version: y_j(v)


@dataclass(frozen=True)
class Drift:
    """Distances of one run; (updates,) arrays, NaN where there is no bound.

    Attributes:
        agents: ‖x_i - x̄‖, [updates, agents].
        prior: the a priori bound.
    """

    run: Run
    updates: np.ndarray
    agents: np.ndarray
    bound: np.ndarray
    prior: float
    beta: float

    @property
    def distance(self) -> np.ndarray:
        return np.sqrt((self.agents**2).sum(axis=1))

    @property
    def ratio(self) -> np.ndarray:
        return np.divide(self.distance, self.bound, out=np.full(len(self.bound), np.nan), where=self.bound > 0)


def answer(found: list[Run], options: Options) -> Answer:
    sketched = [run for run in found if run.agents > 1 and all(len(run.sketches(rank)) for rank in range(run.agents))]
    if not sketched:
        raise RunError(f"{found[0].path}: no sketches of 2 agents or more are there (--sketch-updates of gala_mpi.train)")
    groups = grouped(sketched, options.by)
    drifts = {id(run): drift(run) for run in sketched}
    drawn = [group for group in groups if any(len(drifts[id(run)].updates) for run in group.runs)]
    if not drawn:
        raise RunError(f"{sketched[0].path}: no two agents have sketches of equal updates yet")
    figure, axes = panels(len(drawn), height=2.9)
    for ax, group in zip(axes, drawn):
        draw(ax, group, [drifts[id(run)] for run in group.runs], labels(drawn).index(group.label))
    legend(figure, axes)
    table, points = tables(drawn, drifts)
    said = "; ".join(
        f"{row[1]} on {row[2]} agents: at most {row[6]:.1f}% of the bound" for row in table.rows if np.isfinite(row[6])
    )
    notes = [f"{run.path}: no sketches, or a single agent; left out" for run in found if run not in sketched]
    notes += [f"{run.path}: resumed; no bound" for run in sketched if len(run.starts) > 1 and reads_over_a_graph(run)]
    notes += mixtures(groups, apart={"agents", "environments"})
    notes += [f"{row[0]}: the distance is above its bound" for row in table.rows if row[6] > 100]
    return Answer(table, figure, f"Distance of agents to their mean over updates, with its bound. {said}.", points, notes)


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
    agents = np.linalg.norm(x - x.mean(axis=0), axis=2).T
    if not reads_over_a_graph(run) or len(run.starts) > 1 or not len(chosen):
        return Drift(run, chosen, agents, np.full(len(chosen), np.nan), np.nan, np.nan)
    history = History(run)
    bound = np.array([history.bound(update) for update in chosen])
    beta, period = run.starts[-1].get("beta", np.nan), run.starts[-1].get("period", 1)
    ratio = beta / (1 - beta) if beta < 1 - 1e-12 else np.inf  # such a graph need not bring its agents together
    prior = max(history.steps.values(), default=0.0) * (period - 1 + period * ratio)
    return Drift(run, chosen, agents, bound, prior, beta)


class History:
    """What every agent mixed, and how long its steps were.

    Attributes:
        sources: of each published vector y_j(v): the vectors it is a mean of, with weights, beside the step s_j(v).
        outputs: the same of x_i(k), by (i, k).
        order: all published vectors, each after those it is made of.
        steps: |S(s)| by update, over all agents.
    """

    def __init__(self, run: Run):
        self.agents = run.agents
        self.outputs: dict[Node, list[tuple[Node, float]]] = {}
        squares: dict[int, float] = defaultdict(float)
        for rank in range(run.agents):
            messages = defaultdict(list)
            for update, peer, version, weight in run.mixes(rank).tolist():
                messages[update].append(((peer, version), weight))
            updates = run.updates(rank)
            for update, norm in zip(updates["update"].tolist(), updates["step_norm"].astype(float).tolist()):
                mine = 1 - sum(weight for _, weight in messages[update])
                self.outputs[rank, update] = [((rank, update), mine), *messages[update]]
                squares[update] += norm**2
        self.steps = {update: square**0.5 for update, square in squares.items()}
        self.longest = max(self.steps.values(), default=0.0)
        self.sources = {(rank, update + 1): parts for (rank, update), parts in self.outputs.items()}
        self.order = self._sorted()
        self.place = {node: n for n, node in enumerate(self.order)}

    def _sorted(self) -> list[Node]:
        """Return published vectors in an order in which they can have come to be. What rests on unread rows is left out."""
        first = {rank: (rank, 1) for rank in range(self.agents)}
        order: list[Node] = []
        done: set[Node] = set()
        moved = True
        while moved:
            moved = False
            for rank in range(self.agents):
                while (node := first[rank]) in self.outputs and all(part in done for part, _ in self.sources.get(node, [])):
                    order.append(node)
                    done.add(node)
                    first[rank] = (rank, node[1] + 1)
                    moved = True
        return order

    def bound(self, update: int) -> float:
        """Return Σ_s ‖A_s‖₂ |S(s)| at `update`; NaN where some message it rests on was not read.

        Goes back from x_i(update) - x̄(update) through everything they are made of. `back[j, v]` is the coefficient of
        y_j(v) in each of them, (agents,).
        """
        n = self.agents
        back: dict[Node, np.ndarray] = {}

        def add(parts: list[tuple[Node, float]], coefficient: np.ndarray) -> None:
            for node, weight in parts:
                back[node] = back[node] + weight * coefficient if node in back else weight * coefficient

        for rank in range(n):
            parts = self.outputs.get((rank, update), [])
            if not parts or any(node not in self.place for node, _ in parts):
                return np.nan
            add(parts, np.eye(n)[rank] - 1 / n)
        by_step: dict[int, np.ndarray] = defaultdict(lambda: np.zeros((n, n)))
        rest = 0.0
        for place in range(max(self.place[node] for node in back), -1, -1):
            node = self.order[place]
            coefficient = back.pop(node, None)
            if coefficient is not None:
                rank, version = node
                by_step[version][:, rank] = coefficient
                add(self.sources.get(node, []), coefficient)
                if not back:
                    break
                if place % (8 * n) == 0:
                    left = max(np.abs(c).max() for c in back.values())
                    if left < NEGLIGIBLE:  # averaging never makes them larger: what all earlier steps could still add
                        rest = left * len(back) * n * place * self.longest
                        break
        norms = np.linalg.norm(np.array(list(by_step.values())), 2, axis=(1, 2))
        return float(norms @ [self.steps[s] for s in by_step]) + rest


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
        if np.isfinite(d.prior):
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
