"""Checks of a zoo model's options, worded alike for every model."""

from __future__ import annotations

from meshwright.errors import ModelError


def require_positive(**options: int) -> None:
    for name, value in options.items():
        if value < 1:
            raise ModelError(
                f"{name} is {value}, but it must be at least 1.", f"Give {name}=1 or more."
            )


def require_multiple(name: str, value: int, of: str, divisor: int) -> None:
    if value % divisor:
        below = value // divisor * divisor or divisor
        raise ModelError(
            f"{name}={value} is not a multiple of {of}={divisor}.",
            f"Give {name}={below} or {name}={below + divisor}, or change {of}.",
        )


def require_probability(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ModelError(
            f"{name} is {value}, but it is a probability below 1.", f"Give {name}=0.1, say."
        )


def require_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f"{name} is {value!r}.", f"Give {name}={' or '.join(known)}.")


def whole_numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers in a text such as `3-4-6-3`."""
    try:
        numbers = tuple(int(word) for word in text.split("-"))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ModelError(
            f"{name} is {text!r}, but it is whole numbers joined by hyphens.",
            f"Give {name}=2-2-2, say.",
        )
    return numbers
