"""The architecture, held by reading every import of the package, those in function bodies too."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

from gala_mpi.exchange import EXCHANGES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gala_mpi"
FILES = sorted(PACKAGE.rglob("*.py"))

HOMES = {
    "ale_py": {"envs/"},
    "gymnasium": {"envs/"},
    "envpool": {"envs/envpool.py"},
    "h5py": {"run/"},
    "minatar": {"envs/minatar.py"},
    "onnxruntime": {"networks/onnx.py"},
    "mpi4py": {"mpi/", "exchange/", "gossip.py", "job/build.py"},  # build: the type of the communicator
    "matplotlib": {"topology/draw.py"},
    "pynvml": {"record/energy.py"},
    "tyro": {"cli.py"},
    "wandb": {"record/logs.py"},
    "tomli_w": {"config_file.py"},
    "rich": {"display.py", "evaluate.py", "bench/", "doctor/", "topology/__main__.py", "watch.py"},
}


def name_of(path: Path) -> str:
    """`gala_mpi/exchange/gossip.py` → `exchange/gossip.py`."""
    return path.relative_to(PACKAGE).as_posix()


def module_of(path: Path) -> str:
    parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_statements(node: ast.AST, bodies: bool) -> list[ast.AST]:
    """The imports below `node`; with `bodies` those in functions too; never those for type checkers alone."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            found.append(child)
        elif is_type_checking(child) or (isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and not bodies):
            continue
        else:
            found += import_statements(child, bodies)
    return found


@functools.cache
def imports_of(path: Path, bodies: bool) -> set[str]:
    """Full names of everything that is imported: modules, and `module.name` for each name out of one."""
    names = set()
    for statement in import_statements(ast.parse(path.read_text()), bodies):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, f"{name_of(path)} has a relative import"
            names |= {statement.module} | {f"{statement.module}.{alias.name}" for alias in statement.names}
    return names


def modules_of_ours(path: Path, bodies: bool) -> set[str]:
    """The modules of this package that importing `path` imports, packages around them too."""
    named = {name for name in imports_of(path, bodies) if name in MODULES}
    around = {name.rpartition(".")[0] for name in named} & set(MODULES)
    return (named | around) - {PACKAGE.name, module_of(path)}


def lives_in(path: Path, homes: set[str]) -> bool:
    name = name_of(path)
    return any(name == home or (home.endswith("/") and name.startswith(home)) for home in homes)


def who_imports(dependency: str) -> list[Path]:
    return [path for path in FILES if any(name.split(".")[0] == dependency for name in imports_of(path, True))]


@pytest.mark.parametrize("dependency", HOMES)
def test_a_dependency_stays_at_home(dependency):
    importers = who_imports(dependency)
    assert importers, f"nobody imports {dependency}: this test looks for the wrong name"
    assert [name_of(path) for path in importers if not lives_in(path, HOMES[dependency])] == []


def all_imports_of(path: Path) -> set[str]:
    """Names of what `path` imports, and the modules of this package that it imports, and those, and so on."""
    names, ahead = set(), [path]
    seen = set(ahead)
    while ahead:
        here = ahead.pop()
        names |= imports_of(here, True)
        more = {MODULES[module] for module in modules_of_ours(here, True)} - seen
        seen |= more
        ahead += more
    return {name.split(".")[0] for name in names}


STRANGERS = {
    "mpi": {"torch", "h5py"},
    "exchange": {"h5py"},
    "topology": {"torch", "h5py", "mpi4py"},
    "run": {"torch", "mpi4py", "gymnasium", "ale_py"},
}


@pytest.mark.parametrize("room, strangers", STRANGERS.items(), ids=STRANGERS)
def test_a_room_needs_no_more_than_its_own(room, strangers):
    """Not even through others of this package."""
    for path in (PACKAGE / room).rglob("*.py"):
        assert not all_imports_of(path) & strangers, name_of(path)


@pytest.mark.parametrize("name", ["policy.py", "export.py"])
def test_a_policy_needs_no_mpi(name):
    assert "mpi4py" not in all_imports_of(PACKAGE / name)


def test_the_table_of_exchanges_needs_neither_torch_nor_mpi():
    assert not all_imports_of(PACKAGE / "exchange" / "__init__.py") & {"torch", "mpi4py", "numpy"}


def strings(node: ast.AST) -> set[str]:
    return {part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def names_compared(path: Path) -> set[str]:
    """The strings with which something is compared, or by which it is looked up on the spot."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Compare, ast.match_case)):
            found |= strings(node)
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
            found |= strings(node.value)
    return found


def test_nobody_else_asks_for_an_exchange_by_its_name():
    """Whoever wants to know something of an exchange asks its class."""
    strangers = [path for path in [*FILES, *ROOT.glob("benchmarks/*.py")] if PACKAGE / "exchange" not in path.parents]
    asking = {path.relative_to(ROOT): names for path in strangers if (names := names_compared(path) & set(EXCHANGES))}
    assert asking == {}


def test_nothing_knows_the_training_program():
    knowing = [name_of(path) for path in FILES if f"{PACKAGE.name}.train" in imports_of(path, True)]
    assert knowing == []


def test_pure_modules_know_no_files_no_mpi_and_no_torch_but_returns():
    standard = {"__future__", "dataclasses", "typing", "collections", "functools", "itertools", "math"}
    pure = [("topology/base_graph.py", set()), ("topology/graphs.py", {"numpy", "gala_mpi"})]  # the former
    for name, allowed in (*pure, ("learners/returns.py", {"torch"}), ("errors.py", set())):
        imported = {module.split(".")[0] for module in imports_of(PACKAGE / name, True)}
        assert imported - standard == allowed, name


def arrows() -> list[tuple[str, str]]:
    """Who imports whom, function bodies included. A package is there before its parts: that is no arrow."""
    found = [(module, other) for module, path in MODULES.items() for other in modules_of_ours(path, True)]
    return [(module, other) for module, other in found if not module.startswith(f"{other}.")]


def room_of(module: str) -> str:
    """`gala_mpi.exchange.gossip` → `exchange`; a file at the top is a room of its own."""
    return module.split(".")[1]


def test_there_is_no_circle_between_files():
    assert len(arrows()) > 100
    assert list(nx.simple_cycles(nx.DiGraph(arrows()))) == []


def test_there_is_no_circle_between_rooms():
    rooms = nx.DiGraph((room_of(module), room_of(other)) for module, other in arrows() if room_of(module) != room_of(other))
    assert list(nx.simple_cycles(rooms)) == []


def test_the_exchanges_know_nothing_of_learning():
    """What is sent are vectors: no exchange imports the network, the learner or the environments."""
    learning = {f"{PACKAGE.name}.{name}" for name in ("networks", "learners", "rollout", "envs", "agent", "flat")}
    for path in (PACKAGE / "exchange").glob("*.py"):
        assert not modules_of_ours(path, True) & learning, name_of(path)


TRAINING = """
import sys
from gala_mpi.config import Config
from gala_mpi.job import build
from gala_mpi.mpi.world import World

with World() as world:
    me = build.build(Config(env="CartPole-v1", network="mlp", precision="fp32"), world.comm, 0, 1)
    me.start()
    me.update()
    me.close()
print(*sys.modules)
"""


def test_training_does_not_import_what_takes_seconds_and_is_not_used():
    """On 32 ranks and few cores every second of a start is many."""
    started = subprocess.run([sys.executable, "-c", TRAINING], capture_output=True, text=True, check=True, timeout=300)
    modules = set(started.stdout.split())
    assert {"torch", "gymnasium", "gala_mpi.learners.a2c"} < modules
    assert not modules & {"torch._dynamo", "torch._inductor", "sympy", "matplotlib", "imageio", "tyro", "scipy", "pandas"}
