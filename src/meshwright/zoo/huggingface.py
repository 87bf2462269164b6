"""Models of Hugging Face transformers, built from a config file alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo.checks import require_one_of, require_positive, require_probability
from meshwright.zoo.huggingface_config import (
    check_length,
    import_transformers,
    make_config,
    override,
    read_config,
    settable,
)
from meshwright.zoo.huggingface_kinds import KINDS, architecture, default_sizes, pick
from meshwright.zoo.options import Option, cast_value, unknown_option
from meshwright.zoo.shipped import is_shipped, shipped_config

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_ATTENTION = ("auto", "sdpa", "eager")


def huggingface_task(path: str, options: Mapping[str, Option]) -> Task:
    """The model of a `config.json` with random weights, on random data, with its own loss.

    path: of the file, or the short name of a config that comes with the package.
    Options are `task` (what to train it for; the config says it unless told
    otherwise), `global_batch`, the sizes of the batch that the task has
    (`seq_len`, `padding`, `target_len`, `image_size`, `samples`), `dtype` (float32
    unless told otherwise), `attn_implementation` (sdpa or eager; auto leaves it to
    transformers) and every field of the config, which they override, those of a
    part as `text_config.hidden_size`.
    """
    reference = f"hf:{path}"
    fields, title = _fields(path)
    import_transformers()
    config = make_config(fields, reference)
    name = pick(config, options.get("task"))
    kind = KINDS[name]

    sizes = default_sizes(kind, config)
    own = {"dtype": "float32", "attn_implementation": "auto"}
    of_config = settable(config)
    given = {}
    for option, value in options.items():
        if option in sizes:
            given[option] = cast_value(option, value, type(sizes[option]))
        elif option in own:
            own[option] = str(value)
        elif option in of_config:
            override(fields, option, value, of_config[option])
        elif option != "task":
            known = ("task", *sizes, *own, *of_config)
            raise unknown_option(option, known, reference)
    if own["dtype"] not in _DTYPES:
        raise ModelError(
            f"dtype is {own['dtype']!r}, which no model is trained in.",
            "Give dtype=float32 or bfloat16.",
        )
    require_one_of("attn_implementation", own["attn_implementation"], _ATTENTION)

    # A cache of keys and values is for generation; in training it would only be one more output.
    if "use_cache" in of_config:
        fields["use_cache"] = False
    if name == "sequence-classification" and config.pad_token_id is None:
        fields["pad_token_id"] = 0  # decoders look for the last token before the padding
    config = make_config(fields, reference)
    built = architecture(config, name)
    fields["architectures"] = [built.__name__]
    takes = inspect.signature(built.forward).parameters
    sizes = {**default_sizes(kind, config), **given}
    _check_sizes(config, sizes)
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, own["dtype"])
    batch = {
        key: item.to(dtype) if item.is_floating_point() else item
        for key, item in kind.batch(config, sizes, generator).items()
        if key in takes  # some know no padding
    }
    return Task(
        model=partial(_build, fields, kind.auto, own, reference),
        loss=kind.loss,
        batch=batch,
        name=title or str(config.model_type),
    )


def _fields(path: str) -> tuple[dict[str, Any], str]:
    """The config's fields, and its short name if it has one; what lies at the path comes first."""
    if is_shipped(path) and not Path(path).exists():
        return shipped_config(path)[0], path
    return read_config(Path(path)), ""


def _check_sizes(config: Any, sizes: Mapping[str, int | float]) -> None:
    for name, value in sizes.items():
        if name == "padding":
            require_probability(name, value)
        else:
            require_positive(**{name: int(value)})
        if name in ("seq_len", "target_len"):
            check_length(config, name, int(value))


def _build(
    fields: Mapping[str, Any], auto: str, own: Mapping[str, str], reference: str
) -> nn.Module:
    config = make_config(fields, reference)
    arguments: dict[str, Any] = {"dtype": getattr(torch, own["dtype"])}
    if own["attn_implementation"] != "auto":
        arguments["attn_implementation"] = own["attn_implementation"]
    try:
        model = getattr(import_transformers(), auto).from_config(config, **arguments)
    except Exception as error:
        raise ModelError(
            f"transformers can't build a model of {config.model_type} with {auto}: {error}",
            "Check the fields of the config, or write a factory that builds the model.",
        ) from error
    built: nn.Module = model.train()
    return built
