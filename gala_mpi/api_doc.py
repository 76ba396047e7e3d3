"""Print docs/api.md, from the docstrings of the public names:  python -m gala_mpi.api_doc > docs/api.md"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import gala_mpi

PAGE = """# The public names

Made by `python -m gala_mpi.api_doc` from the docstrings; a test compares. [library.md](library.md) shows how they are used, and
[metrics.md](metrics.md) what a run's tables hold.

"""
SECTIONS = ("Args", "Attributes", "Returns", "Raises")
ENTRY = r"[\w*]+(?:, [\w*]+)*: "  # "name: what it is", or "name, other: ..."
WIDTH = 110  # of a call in one line


def page() -> str:
    """Return the whole page."""
    names = sorted(name for name in gala_mpi.__all__ if not name.startswith("_"))
    return PAGE + "\n".join("\n".join(_described(name, _called(getattr(gala_mpi, name)))) for name in names)


def _called(value: Any) -> Any:
    """Return what is called in a public name: of a module that can be called, its function."""
    return value.call if inspect.ismodule(value) else value


def _described(name: str, value: Any) -> Iterator[str]:
    """Yield the lines on a function, or on a class and its public methods and properties."""
    yield from _paragraphs(f"## {name}", _signature(f"gala_mpi.{name}", value), value)
    for member, method in _members(value):
        is_property = isinstance(method, property)
        function = method.fget if is_property else method
        call = f".{member}" if is_property else _signature(f".{member}", function, bound=True)
        yield from _paragraphs(f"### {name}.{member}", call, function)


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a class's own public methods and properties, in their order; none of `Config`. The rest is in its docstring."""
    for name, member in vars(value).items() if inspect.isclass(value) and value is not gala_mpi.Config else ():
        member = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
            yield name, member


def _signature(name: str, value: Any, bound: bool = False) -> str:
    """Return how something is called. Annotations are as they were written."""
    signature = inspect.signature(value)
    shown = [_parameter(parameter) for parameter in signature.parameters.values()][bound:]
    kinds = [parameter.kind for parameter in signature.parameters.values()][bound:]
    if inspect.Parameter.KEYWORD_ONLY in kinds:
        shown.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    returned = "" if inspect.isclass(value) else f" -> {signature.return_annotation}"
    call = f"{name}({', '.join(shown)}){returned}"
    return call if len(call) <= WIDTH else f"{name}(\n    " + ",\n    ".join(shown) + f",\n){returned}"


def _parameter(parameter: inspect.Parameter) -> str:
    star = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    return f"{star}{parameter.name}: {parameter.annotation}{default}"


def _paragraphs(heading: str, call: str, value: Any) -> Iterator[str]:
    """Yield a heading, the call and the docstring, whose sections become lists."""
    text = inspect.getdoc(value)
    assert text, f"{heading} has no docstring"
    yield from (heading, "", f"```python\n{call}\n```", "")
    for part in re.split(rf"\n\n(?=(?:{'|'.join(SECTIONS)}):\n)", text):
        title, _, body = part.partition(":\n")
        if title not in SECTIONS:
            yield from (_unwrapped(part), "")
        elif title == "Returns":
            yield from (f"*{title}:* {' '.join(body.split())}", "")
        else:
            items = re.split(rf"\n(?={ENTRY})", inspect.cleandoc(body))
            yield from (f"*{title}*", "", *map(_entry, items), "")


def _entry(item: str) -> str:
    name, _, meaning = " ".join(item.split()).partition(": ")
    return f"- `{name}`: {meaning}"


def _unwrapped(text: str) -> str:
    """Join the lines of paragraphs; keep those of code, which is indented."""
    return "\n\n".join(part if part.startswith("    ") else " ".join(part.split()) for part in text.split("\n\n"))


if __name__ == "__main__":
    print(page(), end="")
