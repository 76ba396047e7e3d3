"""Sketches: what survives a projection. By definition, against the vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gala_mpi.record.sketch import Sketcher
from gala_mpi.run.tables import SIZE

LENGTH = 200_000


def vectors(number: int, seed: int = 0) -> torch.Tensor:
    """A few vectors with heavy tails and a common part, as parameters and gradients are. Float32 [number, LENGTH]."""
    random = np.random.default_rng(seed)
    own, common = random.standard_t(3, (number, LENGTH)), random.standard_t(3, LENGTH)
    return torch.from_numpy((own * np.geomspace(1, 1e-3, LENGTH) + common).astype(np.float32))


def test_a_sketch_is_linear_and_the_same_everywhere():
    a, b = vectors(2)
    sketch = Sketcher(LENGTH, 1)
    assert sketch(a).shape == (SIZE,) and sketch(a).dtype == np.float32
    assert np.array_equal(sketch(a), Sketcher(LENGTH, 7)(a))
    np.testing.assert_allclose(sketch(2 * a - b), 2 * sketch(a) - sketch(b), atol=1e-3)


def test_a_coordinate_goes_to_one_sum_with_a_sign():
    sketch = Sketcher(LENGTH, 1)
    places, signs = [], []
    for coordinate in range(0, LENGTH, 1000):
        vector = torch.zeros(LENGTH)
        vector[coordinate] = 3
        (place,) = np.flatnonzero(sketch(vector))
        places.append(place)
        signs.append(sketch(vector)[place] / 3)
    assert set(signs) == {-1, 1} and 70 < signs.count(1) < 130
    assert len(set(places)) > 180  # of 200, over 4096 sums


def test_distances_survive_within_five_per_cent():
    some = vectors(12)
    sketches = [Sketcher(LENGTH, 1)(vector) for vector in some]
    pairs = [(i, j) for i in range(12) for j in range(i)]
    errors = [np.linalg.norm(sketches[i] - sketches[j]) / float((some[i] - some[j]).norm()) - 1 for i, j in pairs]
    assert np.abs(errors).max() < 0.05
    assert np.std(errors) < 2 / np.sqrt(2 * SIZE)


def test_angles_survive():
    some = vectors(12)
    sketches = np.array([Sketcher(LENGTH, 1)(vector) for vector in some])
    exact = torch.corrcoef(some).numpy()  # their means are 0, nearly
    lengths = np.linalg.norm(sketches, axis=1)
    assert np.abs(sketches @ sketches.T / np.outer(lengths, lengths) - exact).max() < 4.5 / np.sqrt(SIZE)


@pytest.mark.parametrize("every, expected", [(0, []), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6])])
def test_updates_with_a_sketch(every, expected):
    sketch = Sketcher(10, every)
    assert [update for update in range(1, 8) if sketch.due(update)] == expected
