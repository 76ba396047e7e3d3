"""What the analysis says of runs whose right answers follow from how they were made (`synthetic.py`), by no code of ours."""

from __future__ import annotations

from synthetic import DTYPES, paced, updates

from gala_mpi.run import open_run
from gala_mpi.run.tables import TABLES


def test_the_synthetic_format_is_the_programs(tmp_path):
    assert DTYPES == TABLES
    run = paced(tmp_path / "r", seconds=[1, 10], numbers=[100, 10]).resume(agents=3, num_envs=32).evaluate(1, {-1: [1.0, 3.0]})
    run.write(2, after_update=100, updates=updates(4, after=100))
    read = open_run(run.path)
    assert (read.agents, read.config["num_envs"], len(read.starts)) == (3, 32, 2)
    assert [len(read.updates(rank)) for rank in range(3)] == [100, 10, 4] and read.problems == []
    assert read.evaluations[0][0]["score"].tolist() == [1, 3]
