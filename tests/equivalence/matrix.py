"""Models x strategies: what each pair must come to, and the page of the docs that says so.

`docs/reference/equivalence.md` is written by this file and is what the tests hold
every pair to: `python tests/equivalence/matrix.py` runs all pairs and writes it anew.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from huggingface_models import HUGGINGFACE

from meshwright.api import Model, verify
from meshwright.errors import MeshwrightError
from meshwright.task import Task
from meshwright.zoo.reference import load_task

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "equivalence.md"
EQUAL = "equal"
NONE = "·"
CLUSTER = "local:4"

EVERYWHERE = (
    "data", "zero=1", "zero=2", "zero=3", "tensor",
    "data=2,tensor=2", "data=2,tensor=2,zero=3", "auto",
)  # fmt: skip
# What further kinds of model are cut by, beside what every model is.
BY_KIND: Mapping[str, tuple[str, ...]] = {
    "sequence": ("tensor,sequence", "context", "data=2,context=2"),
    "experts": ("expert", "data=2,expert=2"),
    "image": ("spatial", "data=2,spatial=2"),
    "volume": ("spatial", "spatial=2,tensor=2"),
    "graph": ("edge", "edge=2,tensor=2"),
}
STRATEGIES = tuple(dict.fromkeys((*EVERYWHERE, *(s for k in BY_KIND.values() for s in k))))


@dataclass(frozen=True)
class Row:
    """One model, and the kinds of cut that it offers beside the usual ones."""

    name: str
    make: Callable[[], Task]
    kinds: tuple[str, ...] = ()

    @property
    def strategies(self) -> tuple[str, ...]:
        own = {s for kind in self.kinds for s in BY_KIND[kind]}
        return tuple(s for s in STRATEGIES if s in EVERYWHERE or s in own)


def _zoo(name: str, *kinds: str, **options: str) -> Row:
    reference = f"zoo:{name}"
    title = " ".join((reference, *(f"{k}={v}" for k, v in options.items() if k != "size")))
    return Row(title, partial(load_task, reference, options), kinds)


_KINDS: Mapping[str, tuple[str, ...]] = {
    "mixtral": ("sequence", "experts"), "vit": (), "clip": (), "mamba": (),
}  # fmt: skip

ROWS: tuple[Row, ...] = (
    *(Row(name, make, _KINDS.get(name, ("sequence",))) for name, make in HUGGINGFACE.items()),
    _zoo("gpt", "sequence", width="32", seq_len="16", global_batch="8", dropout="0.1"),
    _zoo("convnet", "image", width="4", global_batch="8"),
    _zoo("mlp", hidden="16", global_batch="8"),
    _zoo("resnet50", "image", size="tiny"),
    _zoo("unet3d", "volume", size="tiny"),
    _zoo("deeplab", "image", size="tiny"),
    _zoo("lstm", size="tiny"),
    _zoo("gns", "graph", size="tiny"),
    _zoo("moe", "experts", "sequence", size="tiny", router="loop"),
    _zoo("moe", "experts", "sequence", size="tiny", router="batched"),
    _zoo("dlrm", size="tiny"),
    _zoo("ncf", size="tiny"),
    _zoo("diffusion-unet", "image", size="tiny"),
    _zoo("dit", "sequence", size="tiny"),
)
BY_NAME: Mapping[str, Row] = {row.name: row for row in ROWS}
PAIRS = tuple((row.name, strategy) for row in ROWS for strategy in row.strategies)


@cache
def model(name: str) -> Model:
    return Model(BY_NAME[name].make())


def outcome(name: str, strategy: str, steps: int = 1) -> str:
    """`equal`, or in words what it is instead."""
    try:
        known = model(name)
        result = verify(known.task, CLUSTER, strategy, model=known, steps=steps)
    except MeshwrightError as error:
        return " ".join(error.message.split())
    if result.equal:
        return EQUAL
    worst = max((result.loss, result.gradient, result.parameter, result.buffer),
                key=lambda item: item.relative)  # fmt: skip
    return f"differs: {worst.name} by {worst.relative:.1e}"


def documented(page: Path = PAGE) -> dict[tuple[str, str], str]:
    """What the page says of every pair."""
    text = page.read_text(encoding="utf-8")
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, flags=re.MULTILINE))
    found = {}
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|") or set(line) <= set("|-: "):
            continue
        name, *cells = (cell.strip().strip("`") for cell in line.strip("|").split("|"))
        if name == "Model":
            header = cells
            continue
        for strategy, cell in zip(header, cells, strict=True):
            if cell != NONE:
                found[name, strategy] = cell if cell == EQUAL else notes[cell.strip("()")]
    return found


def write(outcomes: Mapping[tuple[str, str], str], page: Path = PAGE) -> None:
    notes: dict[str, int] = {}
    lines = ["| Model | " + " | ".join(f"`{s}`" for s in STRATEGIES) + " |",
             "|---" * (len(STRATEGIES) + 1) + "|"]  # fmt: skip
    for row in ROWS:
        cells = []
        for strategy in STRATEGIES:
            said = outcomes.get((row.name, strategy))
            if said is None:
                cells.append(NONE)
            elif said == EQUAL:
                cells.append(EQUAL)
            else:
                cells.append(f"({notes.setdefault(said, len(notes) + 1)})")
        lines.append(f"| `{row.name}` | " + " | ".join(cells) + " |")
    equal = sum(said == EQUAL for said in outcomes.values())
    page.write_text(
        _HEAD.format(equal=equal, all=len(outcomes)) + "\n".join(lines) + "\n"
        + "".join(f"\n{number}. {note}" for note, number in notes.items()) + "\n",
        encoding="utf-8",
    )  # fmt: skip


_HEAD = """# Models and strategies, each pair held against one device

Written by `python tests/equivalence/matrix.py`, and checked cell by cell by the test suite:
loss, every gradient, every updated parameter and buffer of a training step on four devices
against plain PyTorch on one, in fp32, within 1e-4 of each tensor's largest value. The
four ranks' programs run in lockstep in one process: in `make test` for some of the pairs, in
which every model and every strategy is, in `make test-all` for all of them. On real gloo
processes `make test` runs every strategy once, `make test-all` every pair.

{equal} of {all} pairs are equal. A number in brackets is the reason under the table why a
pair is not; {none} stands where a strategy is not for that kind of model (a sequence to cut,
experts to divide, an image or volume, a graph). Models under a plain name are Hugging
Face's, unmodified, built from the configs in `tests/equivalence/configs`.

""".replace("{none}", f"`{NONE}`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models whose name holds this; writes nothing")
    parser.add_argument("--strategy", default="", help="strategies that hold this")
    given = parser.parse_args()
    outcomes = {}
    for name, strategy in PAIRS:
        if given.only in name and given.strategy in strategy:
            said = outcomes[name, strategy] = outcome(name, strategy)
            print(f"{name:28s} {strategy:24s} {said}", flush=True)
    if not given.only and not given.strategy:
        write(outcomes)


if __name__ == "__main__":
    main()
