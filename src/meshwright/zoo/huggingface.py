"""Causal language models of Hugging Face transformers, built from a config file alone."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.errors import ModelError
from meshwright.task import Task
from meshwright.zoo.checks import require_positive
from meshwright.zoo.options import Option, cast_value, guess, unknown_option

_BATCH_OPTIONS: dict[str, int] = {"global_batch": 8, "seq_len": 128}


def huggingface_task(path: str, options: Mapping[str, Option]) -> Task:
    """The model of a `config.json`, on random tokens, with its own loss.

    Options are `global_batch`, `seq_len`, `dtype` (float32 unless told
    otherwise) and every field of the config, which they override.
    """
    reference = f"hf:{path}"
    fields = _read_config(Path(path))
    transformers = _import_transformers()
    config = _make_config(transformers, fields, reference)

    sizes = dict(_BATCH_OPTIONS)
    dtype = "float32"
    known = (*_BATCH_OPTIONS, "dtype", *_settable(config))
    for name, value in options.items():
        if name in sizes:
            sizes[name] = cast_value(name, value, int)
        elif name == "dtype":
            dtype = str(value)
        elif name in known:
            fields[name] = _like(name, value, getattr(config, name))
        else:
            raise unknown_option(name, known, reference)
    require_positive(**sizes)
    if dtype not in {"float32", "bfloat16", "float16", "float64"}:
        raise ModelError(
            f"dtype is {dtype!r}, which no model is trained in.", "Give dtype=float32 or bfloat16."
        )
    # A cache of keys and values is for generation; in training it would only be one more output.
    fields["use_cache"] = False
    config = _make_config(transformers, fields, reference)
    _check_length(config, sizes["seq_len"])
    return Task(
        model=partial(_build, fields, dtype),
        loss=None,
        batch=_random_tokens(config.vocab_size, **sizes),
        name=str(config.model_type),
    )


def _read_config(path: Path) -> dict[str, Any]:
    if path.is_dir():
        path = path / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"There is no config file {path}.",
            f"Give the path of a model's config.json; it is read from {Path.cwd()}.",
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}.", "Give a model's config.json.") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ModelError(
            f"{path} has no model_type, so it does not say what model it is of.",
            'Give a config.json of transformers, or add "model_type": "llama", say.',
        )
    return fields


def _import_transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise ModelError(
            "An hf: model needs the transformers package, which is not installed here.",
            "Install it: pip install 'meshwright[hf]'.",
        ) from error


def _make_config(transformers: ModuleType, fields: Mapping[str, Any], reference: str) -> Any:
    try:
        return transformers.AutoConfig.for_model(**fields)
    except Exception as error:
        raise ModelError(
            f"transformers {transformers.__version__} can't read {reference}: {error}",
            "Check model_type and the fields, or install a version that knows this model.",
        ) from error


def _settable(config: Any) -> tuple[str, ...]:
    return tuple(name for name in config.to_dict() if name != "model_type")


def _like(name: str, value: Option, current: Any) -> Any:
    kind = type(current)
    return cast_value(name, value, kind) if kind in (bool, int, float, str) else guess(value)


def _check_length(config: Any, seq_len: int) -> None:
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and seq_len > longest:
        raise ModelError(
            f"seq_len is {seq_len}, but {config.model_type} has {longest} positions.",
            f"Give seq_len={longest} or less, or max_position_embeddings={seq_len}.",
        )


def _random_tokens(vocab: int, global_batch: int, seq_len: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab, (global_batch, seq_len), generator=generator)
    return {"input_ids": ids, "labels": ids.clone()}  # the model shifts labels itself


def _build(fields: Mapping[str, Any], dtype: str) -> nn.Module:
    transformers = _import_transformers()
    config = transformers.AutoConfig.for_model(**fields)
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    except Exception as error:
        raise ModelError(
            f"transformers can't build a causal language model of {config.model_type}: {error}",
            "Check the fields of the config, or write a factory that builds the model.",
        ) from error
    built: nn.Module = model.train()
    return built
