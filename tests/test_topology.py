"""Graphs: who reads whom, with which weights, and how fast they average."""

import math

import networkx as nx
import numpy as np
import pytest

from gala_mpi import topology
from gala_mpi.topology import OFFSETS, Topology, build, mixing_rate, second_singular_value

SIZES = (1, 2, 3, 4, 5, 7, 8, 16)
POWERS_OF_TWO = (2, 4, 8, 16)
every_graph = pytest.mark.parametrize("name, size", [(name, size) for name in OFFSETS for size in SIZES])


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
            assert bool(peers) == (size > 1)


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
    graph = build(name, size)
    for round in range(len(graph.rounds)):
        matrix = graph.mixing_matrix(round)
        assert np.allclose(matrix.sum(axis=0), 1) and np.allclose(matrix.sum(axis=1), 1)
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
    assert second_singular_value(graph.mixing_matrix(0)) == mixing_rate(graph)


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
    assert build("exponential", size).rounds == (tuple(expected),)
    assert build("one-peer-exponential", size).rounds == tuple((offset,) for offset in expected)


@pytest.mark.parametrize("size", POWERS_OF_TWO)
def test_one_peer_exponential_averages_exactly_in_log2_n_rounds(size):
    graph = build("one-peer-exponential", size)
    assert len(graph.rounds) == math.log2(size)
    assert np.array_equal(product_of_rounds(graph), np.full((size, size), 1 / size))


@pytest.mark.parametrize("size", SIZES[1:])
def test_complete_averages_in_one_round(size):
    assert np.allclose(build("complete", size).mixing_matrix(0), 1 / size)
    assert mixing_rate(build("complete", size)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", OFFSETS)
def test_one_agent_is_alone(name):
    graph = build(name, 1)
    assert graph.in_peers(0, 3) == graph.out_peers(0, 3) == graph.neighbours(0) == []
    assert graph.degree == 0 and mixing_rate(graph) == 0.0
    assert np.array_equal(graph.mixing_matrix(0), [[1]])


def test_names_are_those_of_the_settings():
    assert set(OFFSETS) == set(topology.get_args(topology.Name))
