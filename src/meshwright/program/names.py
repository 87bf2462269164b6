"""Names of a Program's values and ops, which stay when other parts of the model change.

`blocks.0.attn/view.2` is the third `view` of that module's forward; what its
backward computes is under `blocks.0.attn/backward/`, and what the loss callable
does outside of the model under `loss/`.
"""

from __future__ import annotations


class Names:
    """Gives each name once: later ones that are wanted again get a number."""

    def __init__(self) -> None:
        self._repeats: dict[str, int] = {}
        self._taken: set[str] = set()

    def give(self, wanted: str) -> str:
        repeat = self._repeats.get(wanted, 0)
        while True:
            name = f"{wanted}.{repeat}" if repeat else wanted
            repeat += 1
            if name not in self._taken:
                break
        self._repeats[wanted] = repeat
        self._taken.add(name)
        return name


def op_name(place: str, backward: bool, schema: str) -> str:
    """What an op is called before it is numbered; schema: its name, as in `mm`."""
    return "/".join([*([place] if place else []), *(["backward"] if backward else []), schema])


def wanted_name(name: str) -> str:
    """What an op was called before it was numbered."""
    place, slash, own = name.rpartition("/")
    return place + slash + own.partition(".")[0]


def result_name(op: str, index: int) -> str:
    return f"{op}:{index}" if index else op
