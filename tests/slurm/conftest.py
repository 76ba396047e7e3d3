"""One Slurm for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if lack := missing():
        pytest.fail(lack, pytrace=False)
    with Cluster(nodes=4) as cluster:
        yield cluster
