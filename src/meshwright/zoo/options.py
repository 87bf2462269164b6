"""Options of a factory: from command-line words to what its signature asks for."""

from __future__ import annotations

import ast
import difflib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from meshwright.errors import ModelError

Option = str | int | float | bool

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


def cast_options(
    factory: Callable[..., Any], options: Mapping[str, Option], reference: str
) -> dict[str, Any]:
    """`options` as keyword arguments of `factory`.

    A parameter's annotation says what a word becomes, else its default does.
    Raises ModelError for an option that the factory doesn't take, one that it
    needs and did not get, and a word that doesn't read as its type.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return {name: guess(value) for name, value in options.items()}
    hints = _hints(factory)
    named = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())

    cast: dict[str, Any] = {}
    for name, value in options.items():
        if name in named:
            cast[name] = cast_value(name, value, _target(named[name], hints))
        elif takes_any:
            cast[name] = guess(value)
        else:
            raise unknown_option(name, tuple(named), reference)
    missing = [n for n, p in named.items() if p.default is p.empty and n not in cast]
    if missing:
        raise ModelError(
            f"{reference} needs {_listed(missing)}, which got no value.",
            "Give " + " ".join(f"{name}=VALUE" for name in missing) + ".",
        )
    return cast


def unknown_option(name: str, known: tuple[str, ...], reference: str) -> ModelError:
    if not known:
        return ModelError(f"{reference} takes no options, but got {name}.", f"Leave {name} out.")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return ModelError(
        f"{reference} has no option {name}.", f"{hint}It takes {_listed(sorted(known))}."
    )


def cast_value(name: str, value: Option, target: type | None) -> Any:
    """`value` as a `target`; None as the target means that nothing is known of it."""
    if target is None:
        return guess(value)
    if not isinstance(value, str):
        if type(value) is target:
            return value
        if target is float and type(value) is int:
            return float(value)
        raise _wrong(name, value, target)
    if target is str:
        return value
    if target is bool:
        word = value.strip().lower()
        if word not in _TRUE | _FALSE:
            raise _wrong(name, value, target)
        return word in _TRUE
    try:
        return target(value)
    except ValueError as error:
        raise _wrong(name, value, target) from error


def guess(value: Option) -> Any:
    """A word as the number or truth value that it spells, else the word itself."""
    if not isinstance(value, str):
        return value
    word = value.strip()
    if word.lower() in {"true", "false"}:
        return word.lower() == "true"
    try:
        literal = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return value
    return literal if isinstance(literal, int | float) else value


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    # A class used as a factory has its hints on __init__; a name that only a
    # type checker sees can't be resolved, and then the defaults must do.
    function = factory.__init__ if inspect.isclass(factory) else factory
    try:
        return typing.get_type_hints(function)
    except Exception:
        return {}


def _target(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> type | None:
    hint = hints.get(parameter.name)
    if hint is None and parameter.default not in (None, parameter.empty):
        hint = type(parameter.default)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        plain = [a for a in typing.get_args(hint) if a is not type(None)]
        hint = plain[0] if len(plain) == 1 else None
    return hint if hint in (bool, int, float, str) else None


def _wrong(name: str, value: Option, target: type) -> ModelError:
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[target]
    example = {bool: "true", int: "4", float: "0.1", str: "TEXT"}[target]
    return ModelError(f"{name} is {value!r}, but must be {wanted}.", f"Give {name}={example}, say.")


def _listed(names: typing.Iterable[str]) -> str:
    return ", ".join(names)
