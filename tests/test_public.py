"""The public names, and the rooms that need neither torch nor MPI."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

import gala_mpi
from without_training import TRAINING, run_without

ROOT = Path(__file__).parents[1]
LIGHT = ("gala_mpi.run", "gala_mpi.topology", "gala_mpi.exchange", "gala_mpi.config", "gala_mpi.watch")


def test_public_names_are_there():
    assert {"open_run", "find_runs", "__version__"} <= set(gala_mpi.__all__) <= set(dir(gala_mpi))
    for name in gala_mpi.__all__:
        assert getattr(gala_mpi, name), name
    assert gala_mpi.__version__ == importlib.metadata.version("gala_mpi")
    with pytest.raises(AttributeError, match="module 'gala_mpi' has no attribute 'nothing'"):
        _ = gala_mpi.nothing


def test_the_page_of_the_public_names_is_made_from_their_docstrings():
    from gala_mpi import api_doc  # which imports them all

    page = api_doc.page()
    assert (ROOT / "docs" / "api.md").read_text() == page, "python -m gala_mpi.api_doc > docs/api.md"
    for name in ("## Gossip", "### Gossip.mix", "## Mailbox", "## Topology", "## load_policy", "### Policy.act", "## open_run"):
        assert f"\n{name}\n" in page
    assert "\n- `staleness`: after how many mixes" in page and "\n- `SettingError`: " in page


def test_the_package_imports_nothing_and_sets_no_variable(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "before, modules = dict(os.environ), set(sys.modules)\n"
        "import gala_mpi\n"
        "assert dict(os.environ) == before\n"
        "print(gala_mpi.__file__, *{name.split('.')[0] for name in set(sys.modules) - modules})\n"
    )
    done = run_without(TRAINING, program, paths=str(ROOT))
    assert done.returncode == 0, done.stderr
    place, *modules = done.stdout.split()
    assert Path(place) == ROOT / "gala_mpi" / "__init__.py"
    assert not set(modules) & {*TRAINING, "numpy", "h5py", "tyro", "rich"}


@pytest.mark.parametrize("module", LIGHT)
def test_rooms_that_need_nothing_of_the_training(tmp_path, module):
    program = tmp_path / "program.py"
    program.write_text(f"import os, sys\nbefore = dict(os.environ)\nimport {module}\nassert dict(os.environ) == before\n")
    done = run_without(TRAINING, program, paths=str(ROOT))
    assert done.returncode == 0, done.stderr


def test_the_run_directory_needs_numpy_and_h5py_alone(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import gala_mpi\ngala_mpi.open_run\n")
    done = run_without((*TRAINING, "tyro", "rich", "matplotlib", "scipy"), program, paths=str(ROOT))
    assert done.returncode == 0, done.stderr


def test_the_table_of_exchanges_says_what_papers_call_them(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("from gala_mpi.exchange import EXCHANGES\nprint(*(m.method for m in EXCHANGES.values()), sep='\\n')\n")
    done = run_without(TRAINING, program, paths=str(ROOT))
    assert {"GALA", "A2C", "A3C", "independent"} <= set(done.stdout.split("\n")), done.stderr
