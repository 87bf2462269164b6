"""`meshwright doctor --models`: well-known models whose configs come with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meshwright.cli.output import Output
from meshwright.zoo.shipped import shipped_config, shipped_names

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_LONGEST = ("max_position_embeddings", "n_positions", "max_target_positions")
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def show_models(out: Output) -> None:
    from meshwright.cli.show import table

    made = table(
        "hf:NAME", "parameters", "type", "layers", "width", "longest", wrap=(),
        right=("parameters", "layers", "width", "longest"),
    )  # fmt: skip
    rows = []
    for name in shipped_names():
        fields, about = shipped_config(name)
        made.add_row(
            name, count_text(about.parameters), fields["model_type"],
            *(_first(fields, names) for names in (_LAYERS, _WIDTH, _LONGEST)),
        )  # fmt: skip
        rows.append({"name": name, "parameters": about.parameters, "source": about.source,
                     "config": fields})  # fmt: skip
    out.print(made)
    out.print(
        "\nDims alone, no weights; longest: the positions that a model has. Every field\n"
        "is an option, as in -o num_hidden_layers=2. --json has all fields, and where\n"
        "they are published."
    )
    out.emit({"models": rows})


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> str:
    parts = [fields, *(part for part in fields.values() if isinstance(part, dict))]
    return next((str(part[name]) for part in parts for name in names if name in part), "")


def count_text(parameters: int) -> str:
    """As in `8.03 B`."""
    for size, unit in _UNITS:
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return str(parameters)
