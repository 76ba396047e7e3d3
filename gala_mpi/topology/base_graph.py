"""Base-(k+1) graphs: rounds after which any number of agents have the exact mean, each of k peers at most.

Takezawa, Sato, Bao, Niwa, Yamada, "Beyond Exponential Graph: Communication-Efficient Topologies for Decentralized Learning via
Finite-time Convergence", NeurIPS 2023, algorithms 1 to 3. Pure arithmetic.

A round is a dict of links: agents i and j read each other with a weight, and what is missing of 1 is an agent's own weight. So
its matrix is symmetric and doubly stochastic.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence

Links = dict[tuple[int, int], float]


def base_graph(agents: Sequence[int], k: int) -> list[Links]:
    """Return the rounds of the Base-(k+1) graph over `agents` (algorithm 3).

    n = p·q, where p has all prime factors up to k + 1. Blocks of q average, then the p agents of one place in all blocks. It
    is the simple graph over all where that takes fewer rounds.
    """
    n = len(agents)
    p = max(divisor for divisor in range(1, n + 1) if n % divisor == 0 and _factors(divisor, k + 1) is not None)
    q = n // p
    in_blocks = _side_by_side([_simple_base_graph(agents[start : start + q], k) for start in range(0, n, q)])
    across = _side_by_side([_hypercube(agents[place::q], k) for place in range(q)])
    return min([*in_blocks, *across], _simple_base_graph(agents, k), key=len)


def _simple_base_graph(agents: Sequence[int], k: int) -> list[Links]:
    """Return the rounds of the simple graph (algorithm 2).

    The digits of n in base k + 1 cut the agents into parts, and each into blocks of one power of k + 1. First each part
    averages. Then, part after part, every agent of the later parts is linked with one of each of its blocks, so that the sum of
    the later parts and that of each of its blocks are what they must be. Last each block averages.
    """
    if _factors(len(agents), k + 1) is not None:
        return _hypercube(agents, k)
    parts = _parts(agents, k + 1)
    whole = [list(itertools.chain(*blocks)) for blocks in parts]
    rounds: list[Links] = [{} for _ in range(1 + len(_hypercube(parts[0][0], k)))]
    for number, blocks in enumerate(parts):
        later = list(itertools.chain(*whole[number + 1 :]))
        if later:
            own = _side_by_side([_hypercube(block, k) for block in blocks])
            rounds[number] |= _hand_over(blocks, later, k)
        else:
            own = _hypercube(whole[number], k)
        for round, links in zip(rounds[number + bool(later) :], itertools.cycle(own)):
            round |= links
    return [*_side_by_side([_hypercube(part, k) for part in whole]), *rounds]


def _hand_over(blocks: list[Sequence[int]], later: list[int], k: int) -> Links:
    """Link each of the later agents with one of every block, and those that are left over with each other."""
    size = sum(map(len, blocks))
    weight = size / (size + len(later)) / len(blocks)
    links = {(agent, block[i]): weight for block in blocks for i, agent in enumerate(later)}
    left = [agent for block in blocks for agent in block[len(later) :]]
    for start in range(0, len(left), k + 1):
        links |= _clique(left[start : start + k + 1])
    return links


def _hypercube(agents: Sequence[int], k: int) -> list[Links]:
    """Return the rounds of the k-peer hyper-hypercube (algorithm 1): the agents' places in a mixed radix, digit after digit.

    Of agents whose number has no prime factor above k + 1.
    """
    rounds, stride = [], 1
    for factor in _factors(len(agents), k + 1) or []:
        span = stride * factor
        starts = [start + low for start in range(0, len(agents), span) for low in range(stride)]
        rounds.append(_merged(_clique(agents[start : start + span : stride]) for start in starts))
        stride = span
    return rounds


def _parts(agents: Sequence[int], base: int) -> list[list[Sequence[int]]]:
    """Return the agents by the digits of their number, the first first: as many blocks as the digit says, of its power."""
    parts, start, size = [], 0, 1
    while size * base <= len(agents):
        size *= base
    while size:
        count = (len(agents) - start) // size
        if count:
            parts.append([agents[start + i * size : start + (i + 1) * size] for i in range(count)])
        start += count * size
        size //= base
    return parts


@functools.cache
def _factors(n: int, most: int) -> tuple[int, ...] | None:
    """Return the fewest factors of n, from 2 to `most` each; None: a prime factor of it is larger."""
    if n == 1:
        return ()
    ways = [(factor, _factors(n // factor, most)) for factor in range(2, min(n, most) + 1) if n % factor == 0]
    return min(((factor, *others) for factor, others in ways if others is not None), key=len, default=None)


def _clique(agents: Sequence[int]) -> Links:
    return dict.fromkeys(itertools.combinations(agents, 2), 1 / max(1, len(agents)))


def _side_by_side(groups: list[list[Links]]) -> list[Links]:
    """Merge what groups do at the same time. A group that is done begins anew, which changes no mean."""
    length = max(map(len, groups))
    return [_merged(rounds[at % len(rounds)] for rounds in groups if rounds) for at in range(length)]


def _merged(links: Iterable[Links]) -> Links:
    return {pair: weight for some in links for pair, weight in some.items()}
