"""Graphs: who reads whom, with which weights, and how fast they average."""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator

import networkx as nx
import numpy as np
import pytest

from gala_mpi import topology
from gala_mpi.envs.base import Spaces
from gala_mpi.errors import SettingError
from gala_mpi.networks import policy
from gala_mpi.topology import BUILT_IN, Graph, Topology, draw, files, mixing_rate, second_singular_value
from gala_mpi.topology.__main__ import GraphView
from gala_mpi.topology.graphs import sides
from gala_mpi.topology.properties import diameter, properties, shares
from gala_mpi.topology.substitutes import in_peers_without, weights_without

SIZES = (1, 2, 3, 4, 5, 7, 8, 12, 16)
POWERS_OF_TWO = (2, 4, 8, 16, 32)
every_graph = pytest.mark.parametrize("name, size", [(name, size) for name in BUILT_IN for size in SIZES])


def build(graph: str | Graph, size: int | None) -> Topology:
    return topology.build(Graph(graph) if isinstance(graph, str) else graph, size)


def on_a_ring(*rounds: list[int]) -> tuple[tuple[tuple[int], ...], ...]:
    return tuple(tuple((offset,) for offset in offsets) for offsets in rounds)


def product_of_rounds(graph: Topology) -> np.ndarray:
    product = np.eye(graph.size)
    for round in range(len(graph.rounds)):
        product = graph.mixing_matrix(round) @ product
    return product


@every_graph
def test_in_peers_and_out_peers_are_inverse(name, size):
    graph = build(name, size)
    for round in range(2 * len(graph.rounds)):
        reads = {(reader, read) for reader in range(size) for read in graph.in_peers(reader, round)}
        read_by = {(reader, read) for read in range(size) for reader in graph.out_peers(read, round)}
        assert reads == read_by


@every_graph
def test_peers_are_others_each_once(name, size):
    graph = build(name, size)
    for round in range(len(graph.rounds)):
        for rank in range(size):
            peers = graph.in_peers(rank, round)
            assert len(set(peers)) == len(peers) and set(peers) <= set(range(size)) - {rank}
            assert peers or size == 1 or name == "base"


@every_graph
def test_neighbours_and_degree_are_those_of_all_rounds(name, size):
    graph = build(name, size)
    rounds = range(len(graph.rounds))
    for rank in range(size):
        neighbours = graph.neighbours(rank)
        assert set(neighbours) == {peer for round in rounds for peer in graph.in_peers(rank, round)}
        assert len(set(neighbours)) == len(neighbours)
        distances = [(rank - peer) % size for peer in neighbours]
        assert distances == sorted(distances)
    assert graph.degree == max(len(graph.in_peers(0, round)) for round in rounds)


@every_graph
def test_mixing_matrices_are_doubly_stochastic_with_equal_weights(name, size):
    """Of base graphs the weights are as they must be, and equal both ways."""
    graph = build(name, size)
    for round in range(len(graph.rounds)):
        matrix = graph.mixing_matrix(round)
        assert np.allclose(matrix.sum(axis=0), 1) and np.allclose(matrix.sum(axis=1), 1)
        if name == "base":
            assert (matrix >= 0).all() and np.array_equal(matrix, matrix.T)
            continue
        for rank in range(size):
            peers = graph.in_peers(rank, round)
            for other in range(size):
                takes_part = other == rank or other in peers
                assert matrix[rank, other] == pytest.approx(takes_part / (1 + len(peers)))


@every_graph
def test_everybody_hears_of_everybody_over_some_periods(name, size):
    graph = build(name, size)
    links = nx.DiGraph()
    links.add_nodes_from(range(size))
    for round in range(len(graph.rounds)):
        links.add_edges_from((read, reader) for reader in range(size) for read in graph.in_peers(reader, round))
    assert nx.is_strongly_connected(links)
    assert (np.linalg.matrix_power(product_of_rounds(graph), size) > 0).all()


@every_graph
def test_rounds_repeat(name, size):
    graph = build(name, size)
    period = len(graph.rounds)
    for k in range(5):
        assert graph.in_peers(0, k) == graph.in_peers(0, k + period) == graph.in_peers(0, k + 7 * period)


@pytest.mark.parametrize("size", SIZES[1:])
def test_ring_reads_the_one_before(size):
    graph = build("ring", size)
    assert [graph.in_peers(rank, 0) for rank in range(size)] == [[(rank - 1) % size] for rank in range(size)]


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_ring_keeps_cos_pi_over_n_of_a_disagreement(size):
    graph = build("ring", size)
    assert mixing_rate(graph) == pytest.approx(math.cos(math.pi / size), abs=1e-12)
    assert second_singular_value(graph.mixing_matrix(0)) == pytest.approx(math.cos(math.pi / size), abs=1e-12)


@every_graph
def test_mixing_rate_is_the_norm_of_what_is_left_of_a_disagreement(name, size):
    """The largest factor by which one period shrinks a vector with mean 0."""
    graph = build(name, size)
    disagreement = product_of_rounds(graph) - np.full((size, size), 1 / size)
    assert mixing_rate(graph) == pytest.approx(np.linalg.norm(disagreement, 2), abs=1e-12)


@pytest.mark.parametrize(
    "size, expected", [(2, [1]), (3, [1, 2]), (4, [1, 2]), (5, [1, 2, 4]), (8, [1, 2, 4]), (16, [1, 2, 4, 8])]
)
def test_exponential_offsets_are_the_powers_of_two_below_n(size, expected):
    for name, rounds in (("exponential", [expected]), ("one-peer-exponential", [[offset] for offset in expected])):
        assert tuple(round.offsets for round in build(name, size).rounds) == on_a_ring(*rounds)


@pytest.mark.parametrize("size", POWERS_OF_TWO)
def test_one_peer_exponential_averages_exactly_in_log2_n_rounds(size):
    graph = build("one-peer-exponential", size)
    assert len(graph.rounds) == math.log2(size)
    assert np.array_equal(product_of_rounds(graph), np.full((size, size), 1 / size))


@pytest.mark.parametrize("size", SIZES[1:])
def test_complete_averages_in_one_round(size):
    assert np.allclose(build("complete", size).mixing_matrix(0), 1 / size)
    assert mixing_rate(build("complete", size)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", BUILT_IN)
def test_one_agent_is_alone(name):
    graph = build(name, 1)
    assert graph.in_peers(0, 3) == graph.out_peers(0, 3) == graph.neighbours(0) == []
    assert graph.degree == 0 and mixing_rate(graph) == 0.0
    assert np.array_equal(graph.mixing_matrix(0), [[1]])


@pytest.mark.parametrize("size, expected", [(1, (1, 1)), (7, (1, 7)), (16, (4, 4)), (32, (4, 8)), (1000, (25, 40))])
def test_a_torus_is_as_square_as_can_be(size, expected):
    assert sides(size) == expected


@pytest.mark.parametrize("size", [2, 3, 4, 6, 7, 9, 12, 16])
def test_a_torus_reads_its_neighbours_on_the_grid(size):
    grid = nx.grid_2d_graph(*sides(size), periodic=True)
    columns = sides(size)[1]
    graph = build("torus", size)
    for rank in range(size):
        place = divmod(rank, columns)
        assert set(graph.in_peers(rank, 0)) == {r * columns + c for r, c in grid[place]} - {rank}


# Base-(k+1) graphs.


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_base_graphs_average_exactly_in_one_period_whatever_the_number_of_agents(k):
    for size in range(1, 34):
        graph = build(f"base:{k}", size)
        assert graph.degree <= k
        np.testing.assert_allclose(product_of_rounds(graph), np.full((size, size), 1 / size), atol=1e-14)
        assert mixing_rate(graph) == 0.0


@pytest.mark.parametrize(
    "k, lengths", [(1, [1, 3, 2, 5, 4, 5, 3, 7, 6, 7, 5]), (2, [1, 1, 2, 3, 2]), (3, [1, 1, 1, 3, 2, 3, 2])]
)
def test_base_graphs_are_as_short_as_the_papers(k, lengths):
    """Of 2, 3, ... agents. At most 2 log_(k+1) n + 2 rounds (theorem 1)."""
    assert [build(f"base:{k}", size).period for size in range(2, 2 + len(lengths))] == lengths
    assert all(build(f"base:{k}", size).period <= 2 * math.log(size, k + 1) + 2 for size in range(2, 200))


def test_base_alone_is_of_one_peer():
    assert build("base", 6).rounds == build("base:1", 6).rounds and build("base", 6).degree == 1
    assert build("base:1000", 6).rounds == build("base:5", 6).rounds and build("base:5", 6).period == 1


@pytest.mark.parametrize("word", ["base:0", "base:01", "base:1001", "base:", "base:x", "ring:1"])
def test_a_base_graph_s_degree_is_from_1_to_1000(word):
    assert build("base:1000", 3).period == 1
    with pytest.raises(
        SettingError, match=re.escape(f"--topology {word}: ring, ") + r".* base, base:K, hierarchical:K \(K from 1 to 1000\) or"
    ):
        topology.resolve(Graph(word), [])


def test_a_file_of_an_old_run_may_be_called_as_a_graph_is_now():
    assert build(Graph("base", "0 1\n1 0\n"), 2).rounds == files.parse("base", "0 1\n1 0\n").rounds
    assert topology.resolve(Graph("base", "0 1\n1 0\n"), []).text


# Nodes.

HOSTS = [["a"] * 4, ["a", "a", "b", "b"], ["a", "b"] * 4, ["a", "a", "a", "b", "c", "c", "b"], ["a", "b", "c"]]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("hosts", HOSTS)
def test_hierarchical_reads_inside_nodes_always_and_between_them_now_and_then(hosts, every):
    graph = build(topology.resolve(Graph(f"hierarchical:{every}"), hosts), len(hosts))
    assert (graph.name, graph.size, graph.period) == (f"hierarchical:{every}", len(hosts), every)
    for round in range(every):
        matrix = graph.mixing_matrix(round)
        np.testing.assert_allclose([matrix.sum(axis=0), matrix.sum(axis=1)], 1)
        inside = sum(hosts[peer] == hosts[rank] for rank in range(len(hosts)) for peer in graph.in_peers(rank, round))
        between = sum(hosts[peer] != hosts[rank] for rank in range(len(hosts)) for peer in graph.in_peers(rank, round))
        nodes = [hosts.count(host) for host in set(hosts)]
        assert inside == sum(agents for agents in nodes if agents > 1)
        assert between == (len(nodes) if round == every - 1 and len(nodes) > 1 else 0)
    assert mixing_rate(graph) < 1 and np.all(np.linalg.matrix_power(product_of_rounds(graph), 50) > 0)


def test_a_resumed_hierarchy_goes_by_the_new_hosts():
    resolved = topology.resolve(Graph("hierarchical:2"), ["x", "x", "y"])
    assert resolved == Graph("hierarchical:2", nodes=(0, 0, 1))
    assert topology.resolve(resolved, ["p", "q", "q"]) == Graph("hierarchical:2", nodes=(0, 1, 1))


@pytest.mark.parametrize("every", ["0", "-1", "1.5", "1001", "1000000", "9" * 200])
def test_a_hierarchy_s_period_is_from_1_to_1000_updates(every):
    assert build(topology.resolve(Graph("hierarchical:1000"), ["a", "b"]), 2).period == 1000
    with pytest.raises(SettingError, match=r"hierarchical:K \(K from 1 to 1000\) or a file is expected$"):
        topology.resolve(Graph(f"hierarchical:{every}"), ["a", "b"])


@pytest.mark.parametrize("size", [2, 3, 7, 16, 32])
def test_figures_of_a_hierarchy(size):
    graph = build(topology.resolve(Graph("hierarchical:4"), [str(agent // 4) for agent in range(size)]), size)
    product = product_of_rounds(graph)
    assert properties(graph, 1).beta == pytest.approx(np.linalg.svd(product, compute_uv=False)[1], abs=1e-12)


# Weights.


WEIGHTED = "0 0 0.5\n0 1 0.25\n0 2 0.25\n1 0 1\n2 1 0.9\n2 2 0.1"
ROWS = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [0, 0.9, 0.1]])


# Properties.


@pytest.mark.parametrize("size", [2, 3, 7, 16, 32])
@pytest.mark.parametrize("name", BUILT_IN)
def test_figures_are_those_of_the_dense_matrices(name, size):
    graph = build(name, size)
    found = properties(graph, 1000)
    product = product_of_rounds(graph)
    beta = np.linalg.svd(product, compute_uv=False)[1]
    second = np.sort(np.abs(np.linalg.eigvals(product)))[-2]
    assert found.beta == pytest.approx(beta, abs=1e-12) and found.long_run_rate == pytest.approx(second, abs=1e-7)
    assert found.ratio == pytest.approx(beta / (1 - beta), abs=1e-9)
    assert found.beta_per_update**graph.period == pytest.approx(found.beta, abs=1e-12)
    if beta > 1e-9:
        assert beta ** (found.updates_to_halve / graph.period) == pytest.approx(0.5)
    else:
        assert found.updates_to_halve == graph.period
    assert found.bytes_per_update == 4000 * graph.degree
    assert found.out_degree == max(len(graph.out_peers(rank, k)) for rank in range(size) for k in range(graph.period))


@pytest.mark.parametrize("size", [2, 3, 7, 16, 32])
@pytest.mark.parametrize("name", [*BUILT_IN, "base:2", "hierarchical:3", "hierarchical:30"])
def test_diameter_is_when_all_have_heard_of_all(name, size):
    graph = build(topology.resolve(Graph(name), [str(agent // 4) for agent in range(size)]), size)

    def updates(start: int) -> int:
        product, count = np.eye(size), 0
        while not (product > 0).all():
            product, count = graph.mixing_matrix(start + count) @ product, count + 1
        return count

    assert diameter(graph) == max(updates(start) for start in range(graph.period))
    if graph.period == 1:
        links = nx.DiGraph((peer, reader) for reader in range(size) for peer in graph.in_peers(reader, 0))
        assert diameter(graph) == nx.diameter(links)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_thousand_agents(name):
    graph = build(name, 1000)
    found = properties(graph, 1)
    assert found.beta == pytest.approx(second_singular_value(product_of_rounds(graph)), abs=1e-12)
    theory = {
        "ring": math.cos(math.pi / 1000),
        "exponential": 1 - 2 / 11,  # Ying et al. 2021: 1 − 2 / (1 + ceil(log2 n)) for even n
        "complete": 0,
        "torus": (3 + 2 * math.cos(2 * math.pi / 40)) / 5,
    }
    if name in theory:
        assert found.beta == pytest.approx(theory[name], abs=1e-13)
    assert 0 <= found.beta < 1 and found.diameter >= math.log(1000, 1 + found.degree) - 1e-9


def test_figures_of_a_graph_whose_columns_do_not_sum_to_1():
    found = properties(files.parse("my.txt", WEIGHTED), 10)
    centred = (np.eye(3) - 1 / 3) @ ROWS
    assert found.beta == pytest.approx(np.linalg.norm(centred, 2))
    assert found.long_run_rate == pytest.approx(np.sort(np.abs(np.linalg.eigvals(ROWS)))[-2])
    assert (found.degree, found.out_degree, found.diameter) == (2, 2, 2)


def test_how_much_agents_count_is_what_many_mixes_come_to():
    graph = files.parse("my.txt", WEIGHTED)
    many = np.linalg.matrix_power(ROWS, 200)
    np.testing.assert_allclose(many, np.tile(shares(graph), (3, 1)), atol=1e-12)
    found = properties(graph, 1)
    assert (found.least_share, found.largest_share) == pytest.approx((many[0].min(), many[0].max()))


@pytest.mark.parametrize("name", [*BUILT_IN, "base:2", "hierarchical:3"])
def test_all_agents_count_alike_on_graphs_with_names(name):
    graph = build(topology.resolve(Graph(name), [str(agent // 4) for agent in range(7)]), 7)
    np.testing.assert_allclose(shares(graph), 1 / 7)


def test_agents_that_only_swap_never_agree():
    found = properties(files.parse("swap", "0 1 1\n1 0 1"), 1)
    assert found.beta == pytest.approx(1) and found.ratio is None and found.updates_to_halve is None


def test_the_length_of_messages_is_that_of_the_default_network():
    pong = Spaces((4, 84, 84), image=True, actions=6)
    assert GraphView("ring").parameters == sum(p.numel() for p in policy.Network("gala", pong).parameters())


# In place of the lost.

SMALL_GRAPHS = [(Graph(name), size) for name in [*BUILT_IN, "base:2", "base:3"] for size in range(1, 8)]
SMALL_GRAPHS += [
    (Graph(f"hierarchical:{every}", nodes=nodes), len(nodes))
    for every in (1, 3)
    for nodes in [(0, 0, 1, 1), (0, 0, 0, 1), (0, 1, 2), (0, 1, 0, 1), (0, 0, 1, 1, 2, 2), (0, 0, 1, 2, 2, 1, 3)]
]
SMALL_GRAPHS += [(Graph("my.txt", WEIGHTED), 3), (Graph("my.txt", "0 1\n1 2\n2 0\n0 2\n3 0\n1 3\n"), 4)]


def losses(size: int) -> Iterator[set[int]]:
    """Every set of agents that may be lost while others live."""
    for number in range(size):
        yield from map(set, itertools.combinations(range(size), number))


@pytest.mark.parametrize("named, size", SMALL_GRAPHS, ids=str)
def test_all_that_live_still_hear_of_each_other(named, size):
    graph = build(named, size)
    for lost in losses(size):
        living = set(range(size)) - lost
        links = nx.DiGraph()
        links.add_nodes_from(living)
        for reader, round in itertools.product(living, range(graph.period)):
            links.add_edges_from((peer, reader) for peer in in_peers_without(graph, reader, round, lost))
        assert set(links) == living and nx.is_strongly_connected(links), lost


@pytest.mark.parametrize("named, size", SMALL_GRAPHS, ids=str)
def test_who_is_read_in_place_of_the_lost(named, size):
    """By definition: those to whom a chain of readings leads whose agents between are lost, all in the same round
    (but for mutual graphs)."""
    graph = build(named, size)
    for lost in losses(size):
        for reader, round in itertools.product(set(range(size)) - lost, range(graph.period)):
            links = nx.DiGraph((reader, peer) for peer in graph.in_peers(reader, round))
            for who in lost:  # in a mutual graph, in all rounds
                links.add_edges_from(
                    (who, peer) for peer in (graph.neighbours(who) if graph.mutual else graph.in_peers(who, round))
                )
            expected = (nx.descendants(links, reader) if reader in links else set()) - lost - {reader}
            peers = in_peers_without(graph, reader, round, lost)
            assert set(peers) == expected and len(peers) == len(expected)
            kept = [peer for peer in graph.in_peers(reader, round) if peer not in lost]
            assert peers[: len(kept)] == kept


@pytest.mark.parametrize("named, size", SMALL_GRAPHS, ids=str)
def test_weights_without_the_lost(named, size):
    """They sum to 1; the living keep theirs, and substitutes share alike what the lost had."""
    graph = build(named, size)
    for lost in losses(size):
        for reader, round in itertools.product(set(range(size)) - lost, range(graph.period)):
            before = dict(zip([reader, *graph.in_peers(reader, round)], graph.weights(reader, round)))
            peers = in_peers_without(graph, reader, round, lost)
            own, *weights = weights_without(graph, reader, round, lost)
            assert len(weights) == len(peers) and own + math.fsum(weights) == pytest.approx(1, abs=1e-12)
            assert all(weight == before.get(peer, weight) for peer, weight in zip(peers, weights))
            shares = [weight for peer, weight in zip(peers, weights) if peer not in before]
            of_lost = math.fsum(before[peer] for peer in before if peer in lost)
            assert len(set(shares)) <= 1 and math.fsum(shares) == pytest.approx(of_lost if shares else 0)
            assert own == pytest.approx(before[reader] + (0 if shares else of_lost))


# Files.


def test_a_list_of_edges_without_weights_is_uniform():
    graph = files.parse("my.txt", "# who reads whom\n0 1\n\n1,2 # a comment\n2\t0\n0 2\n")
    expected = [[1 / 3, 1 / 3, 1 / 3], [0, 1 / 2, 1 / 2], [1 / 2, 0, 1 / 2]]
    assert (graph.name, graph.size) == ("my.txt", 3)
    assert np.array_equal(graph.mixing_matrix(0), expected)
    assert graph.weights(0, 0) == [1 / 3, 1 / 3, 1 / 3] and graph.weights(1, 0) == [0.5, 0.5]
    assert graph.in_peers(0, 9) == [1, 2] and graph.out_peers(2, 9) == [0, 1] and graph.neighbours(0) == [2, 1]


@pytest.mark.parametrize("text", [WEIGHTED, "0.5 0.25 .25\n1 0 0\n0 0.9 1e-1", " 0.5, 0.25,0.25\n1,0,0 # one\n0,0.9,0.1\n"])
def test_edges_with_weights_and_matrices_are_the_same_graph(text):
    np.testing.assert_allclose(files.parse("my.txt", text).mixing_matrix(0), ROWS, atol=1e-12)


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_what_a_graph_is_can_be_written_down_and_read(name, size):
    graph = build(name, size)
    for round in range(graph.period):
        matrix = graph.mixing_matrix(round)
        try:
            again = files.parse("again", "\n".join(" ".join(map(repr, row.tolist())) for row in matrix))
        except SettingError as error:  # one round of several
            assert graph.period > 1 and "strongly connected" in str(error)
            continue
        assert np.allclose(again.mixing_matrix(0), matrix)
        assert [set(again.in_peers(r, 0)) for r in range(size)] == [set(graph.in_peers(r, round)) for r in range(size)]
        if graph.period == 1:
            assert mixing_rate(again) == pytest.approx(mixing_rate(graph), abs=1e-12)
            assert diameter(again) == diameter(graph)


BAD = {
    "nothing": ("# empty\n\n", "empty", None),
    "words": ("hello world\n", "'hello' is no weight", 1),
    "a word among edges": ("0 1\n1 zero\n", "'1 zero' is no edge", 2),
    "a negative agent": ("0 1\n1 0\n-1 0\n", "'-1 0' is no edge", 3),
    "half weighted": ("0 1\n1 0 0.5\n", "unlike line 1", 2),
    "no weight": ("0 0 0.5\n0 1 0.5\n1 0\n", "no weight, unlike line 1", 3),
    "weight nan": ("0 1 nan\n1 0 1\n", "'nan' is no weight", 1),
    "weight negative": ("0 0 1.5\n0 1 -0.5\n1 0 1\n", "'-0.5' is no weight", 2),
    "weight 0": ("0 0 0.5\n0 1 0.5\n1 1 0.5\n1 0 0\n", "weight 0", 4),
    "twice": ("0 1\n1 0\n# again\n0 1\n", "stands in line 1 already", 4),
    "itself": ("0 1\n1 1\n", "agent 1 reads itself", 2),
    "sum": ("0 1 0.5\n0 0 0.5\n1 0 0.5\n1 1 0.4\n", "agent 1, its own included, sum to 0.9", 4),
    "a gap": ("0 1\n1 0\n1 3\n3 0\n", "agent 2 reads nobody", 3),
    "nobody read": ("0 1\n1 0\n0 2\n", "agent 2 reads nobody", 3),
    "mistyped": ("0 1\n1 99999999999\n", "agent 2 reads nobody", 2),
    "two halves": ("0 1\n1 0\n2 3\n3 2\n", "agent 2 never hears of agent 0", 3),
    "one way": ("0 1\n1 0\n2 0\n", "agent 0 never hears of agent 2", 1),
    "row too short": ("0.5 0.5 0\n0 0.5 0.5\n0.5 0.5\n", "2 fields, but 3 in line 1", 3),
    "row too many": ("0.5 0.5\n0.5 0.5\n0.5 0.5\n", "ends after 3 lines of 2 weights", 3),
    "row missing": ("0.5 0.5 0 0\n0 0.5 0.5 0\n", "ends after 2 lines of 4 weights", 2),
    "row sum": ("0.5 0.5\n0.5 0.6\n", "sum to 1.1", 2),
}


@pytest.mark.parametrize("text, what, line", BAD.values(), ids=BAD)
def test_a_bad_file_names_its_line(text, what, line):
    with pytest.raises(SettingError) as error:
        files.parse("my.txt", text)
    said = str(error.value)
    assert said.startswith("--topology my.txt" + (f", line {line}: " if line else ": "))
    assert what in said and ("is expected" in said or "are expected" in said) and "\n" not in said


def test_what_is_resolved_needs_no_file_any_more(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text(WEIGHTED)
    resolved = topology.resolve(Graph(str(path)), [])
    path.unlink()
    assert resolved.name == str(path) and topology.resolve(resolved, []) == resolved
    graph = build(resolved, 3)
    assert graph == build(resolved, None) and graph.name == str(path)
    np.testing.assert_allclose(graph.mixing_matrix(0), ROWS)
    with pytest.raises(SettingError, match=r"my\.txt: a graph of 3 agents, but there are 4"):
        build(resolved, 4)


def test_line_numbers_count_from_the_files_first_line(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text("# a comment\n0 1\n0 1\n")
    with pytest.raises(SettingError, match="line 3: 0 1 stands in line 2 already"):
        build(topology.resolve(Graph(str(path)), []), 2)


@pytest.mark.parametrize(
    "packed, graph",
    [
        ("ring", Graph("ring")),
        ("my graph.txt\n0 1\n1 0\n", Graph("my graph.txt", "0 1\n1 0\n")),
        ("hierarchical:2\n0 0 1 1", Graph("hierarchical:2", nodes=(0, 0, 1, 1))),
    ],
)
def test_settings_of_old_runs_are_read(packed, graph):
    stored = dataclasses.asdict(graph)
    assert Graph.from_stored(packed) == Graph.from_stored(stored) == Graph.from_stored(json.loads(json.dumps(stored))) == graph


@pytest.mark.parametrize("name", BUILT_IN)
def test_names_resolve_to_themselves(name):
    assert topology.resolve(Graph(name), []) == Graph(name) and str(Graph(name)) == name


def test_what_is_neither_a_name_nor_a_file_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"^--topology rinng: ring, .* or a file is expected \(did you mean ring\?\)$"):
        topology.resolve(Graph("rinng"), [])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary"):
        with pytest.raises(SettingError, match="a text file is expected"):
            topology.resolve(Graph(str(path)), [])


# Drawing.


@every_graph
def test_the_drawing_in_the_terminal_is_the_matrix(name, size):
    graph = build(name, size)
    rows = [line[4:].split(" ") for line in draw.text(graph).splitlines()[-size:]]
    for reader, row in enumerate(rows):
        for peer, cell in enumerate(row):
            rounds = [k for k in range(graph.period) if peer in graph.in_peers(reader, k)]
            reads = "●" if graph.period == 1 else "123456789"[rounds[0]] if rounds else "·"
            assert cell == ("\\" if peer == reader else reads if rounds else "·")


@pytest.mark.parametrize("name", BUILT_IN)
def test_drawings_fit_a_terminal(name):
    for size in (36, 37, 1000):
        assert max(map(len, draw.text(build(name, size)).splitlines())) <= 132


@pytest.mark.parametrize("text", ["ring 3", "torus 6", "one-peer-exponential 65"])
def test_a_picture_is_written(text, tmp_path):
    name, size = text.split()
    draw.picture(build(name, int(size)), tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
