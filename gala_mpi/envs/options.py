"""Keywords and wrappers of gymnasium's environments, as the command line gives them: words with Python's literals in them."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gala_mpi.envs.modules import load
from gala_mpi.errors import SettingError

OF_MAKE = {"max_episode_steps", "disable_env_checker", "render_mode"}  # which gymnasium.make itself takes
# Wrappers with a state that learns: it is neither saved nor shared, and each environment has its own. Flags that do better.
KEEP_STATISTICS = {"NormalizeObservation": "--normalise-observations", "NormalizeReward": "--normalise-rewards"}


def keywords(words: Sequence[str]) -> dict[str, Any]:
    """Return the keyword arguments that words like `gravity=-3.5` and `map_name=8x8` stand for.

    A value that is no literal of Python's is a string.

    Raises:
        SettingError: a word is not of this form, or a keyword is given twice.
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise SettingError(f"--env-kwargs {word}: KEY=VALUE is expected, each key once")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval raises
        return text


def check_keywords(env: str, spec: Any, given: dict[str, Any]) -> None:
    """Refuse keywords that an environment does not take, as far as its constructor says which it takes.

    Args:
        env: its name.
        spec: gymnasium's.

    Raises:
        SettingError: names the keyword, and those that it takes.
    """
    creator = spec.entry_point
    try:
        creator = load(creator) if isinstance(creator, str) else creator
        parameters = inspect.signature(creator).parameters.values()
    except (SettingError, TypeError, ValueError):  # not there, as its making will say, or built in C
        return
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return  # whatever it hands them to may say so when it is made
    taken = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    for name in given:
        if name not in taken | OF_MAKE:
            names = ", ".join(sorted(taken - OF_MAKE | {"max_episode_steps"}))
            raise SettingError(f"--env-kwargs {name}={given[name]}: {env} takes no {name}; one of these is expected: {names}")


def wrappers(words: Sequence[str]) -> list[Callable[[Any], Any]]:
    """Return the wrappers that words stand for, the innermost first: functions from an environment to one.

    A word is a class of gymnasium.wrappers (FrameStackObservation) or MODULE:FUNCTION, and maybe arguments behind a colon, as
    Python writes them (ResizeObservation:(84,84) or FrameStackObservation:4,padding_type=zero).

    Raises:
        SettingError: there is no such wrapper, or its arguments are no literals.
    """
    return [_wrapper(word) for word in words]


def instead_of(word: str) -> str:
    """Return the flag that does what a wrapper does whose statistics no checkpoint keeps; empty: it is no such wrapper."""
    return KEEP_STATISTICS.get(word.partition(":")[0], "")


def _wrapper(word: str) -> Callable[[Any], Any]:
    import gymnasium

    name, _, rest = word.partition(":")
    if name in gymnasium.wrappers.__all__ and name != "vector":
        wrap, arguments = getattr(gymnasium.wrappers, name), rest
    elif rest.partition(":")[0].replace(".", "").isidentifier():
        function, _, arguments = rest.partition(":")
        try:
            wrap = load(f"{name}:{function}")
        except SettingError as error:
            raise SettingError(f"--wrappers {word}: {error}") from None
    else:
        near = difflib.get_close_matches(name, set(gymnasium.wrappers.__all__) - {"vector"}, n=3)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise SettingError(f"--wrappers {word}: a class of gymnasium.wrappers or MODULE:FUNCTION is expected{hint}")
    positional, named = _arguments(word, arguments)
    return partial(_wrap, word, wrap, positional, named)


def _arguments(word: str, text: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments that a text like `4, padding_type=zero` stands for; a bare name is a string."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError  # a parenthesis that closes the call
        named = {keyword.arg: _literal(keyword.value) for keyword in call.keywords if keyword.arg}
        if len(named) < len(call.keywords):
            raise ValueError  # **something
        return [_literal(node) for node in call.args], named
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # all that literal_eval raises
        raise SettingError(f"--wrappers {word}: arguments that are Python's literals are expected, not {text}") from None


def _literal(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def _wrap(word: str, wrap: Callable[..., Any], positional: list[Any], named: dict[str, Any], env: Any) -> Any:
    """Wrap an environment.

    Raises:
        SettingError: the wrapper does not take it, or what it returns is none.
    """
    import gymnasium

    try:
        wrapped = wrap(env, *positional, **named)
    except Exception as error:  # whatever a wrapper does
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise SettingError(f"--wrappers {word}: it cannot wrap {env} ({said})") from None
    if not isinstance(wrapped, gymnasium.Env):
        raise SettingError(f"--wrappers {word}: it returns {type(wrapped).__name__}; an environment is expected")
    return wrapped
