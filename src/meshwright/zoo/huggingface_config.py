"""A Hugging Face config: read from JSON, overridden by options, asked for sizes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from meshwright.errors import ModelError
from meshwright.zoo.options import Option, cast_value, guess
from meshwright.zoo.shipped import close_names

# Positions that these count from their padding token on, and so lose to it.
_POSITIONS_AFTER_PADDING = frozenset({
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
})  # fmt: skip

_ASSISTED = "transformers.generation.candidate_generator"
_FOUND = "_sklearn_available"  # of transformers.utils.import_utils


def import_transformers() -> ModuleType:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise ModelError(
            "An hf: model needs the transformers package, which is not installed here.",
            "Install it: pip install 'meshwright[hf]'.",
        ) from error
    _import_generation()
    return transformers


def _import_generation() -> None:
    """What every model of transformers imports, without scikit-learn until it is called for.

    Loading scikit-learn and with it scipy.stats takes 2 s; transformers does so, where they are
    installed, for one function that assisted generation calls. That function loads it here.
    """
    if _ASSISTED in sys.modules or "sklearn" in sys.modules:
        return
    looks = importlib.import_module("transformers.utils.import_utils")
    if not getattr(looks, _FOUND, False):
        return
    setattr(looks, _FOUND, False)
    try:
        assisted = importlib.import_module(_ASSISTED)
    finally:
        setattr(looks, _FOUND, True)
    if not hasattr(assisted, "roc_curve"):
        setattr(assisted, "roc_curve", _roc_curve)  # noqa: B010


def _roc_curve(*args: Any, **kwargs: Any) -> Any:
    return importlib.import_module("sklearn.metrics").roc_curve(*args, **kwargs)


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a `config.json`, or of the one in a folder."""
    if path.is_dir():
        path = path / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        close = close_names(str(path.parent if path.name == "config.json" else path))
        hint = f"Did you mean hf:{' or hf:'.join(close)}? " if close else ""
        raise ModelError(
            f"There is no config file {path}.",
            f"{hint}Give the path of a model's config.json (it is read from {Path.cwd()}), or a "
            "short name that `meshwright doctor --models` lists.",
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}.", "Give a model's config.json.") from error
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ModelError(
            f"{path} has no model_type, so it does not say what model it is of.",
            'Give a config.json of transformers, or add "model_type": "llama", say.',
        )
    return fields


def make_config(fields: Mapping[str, Any], reference: str) -> Any:
    transformers = import_transformers()
    try:
        return transformers.AutoConfig.for_model(**fields)
    except Exception as error:
        raise ModelError(
            f"transformers {transformers.__version__} can't read {reference}: {error}",
            "Check model_type and the fields, or install a version that knows this model.",
        ) from error


def settable(config: Any) -> dict[str, Any]:
    """Fields that an option may override, with their values; those of a part as `part.field`."""
    return dict(_fields(config, ""))


def _fields(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in config.to_dict():
        if name == "model_type":
            continue
        value = getattr(config, name, None)
        if hasattr(value, "to_dict"):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def override(fields: dict[str, Any], name: str, value: Option, current: Any) -> None:
    """Sets the field `name`, which may be one of a part, to `value`, read like `current`."""
    *parts, last = name.split(".")
    for part in parts:
        # A copy, as what was read may be shared.
        fields[part] = dict(fields.get(part) or {})
        fields = fields[part]
    kind = type(current)
    fields[last] = (
        cast_value(name, value, kind) if kind in (bool, int, float, str) else guess(value)
    )


def text_part(config: Any) -> Any:
    """The config of the text model: a part of one with several, else the config itself."""
    return getattr(config, "text_config", None) or config


def image_part(config: Any) -> Any:
    return getattr(config, "vision_config", None) or config


def positions(config: Any) -> int | None:
    """The longest sequence that the text model has positions for; None when there is no limit."""
    text = text_part(config)
    name = "max_target_positions" if _is_of_speech(config) else "max_position_embeddings"
    longest = getattr(text, name, None)
    # Some write a negative number for none.
    if not isinstance(longest, int) or longest < 1:
        return None
    if text.model_type in _POSITIONS_AFTER_PADDING:
        longest -= (text.pad_token_id or 0) + 1
    return longest


def _is_of_speech(config: Any) -> bool:
    # Such a model has further positions, and often the usual field too, for what it hears.
    return hasattr(config, "max_target_positions")


def check_length(config: Any, name: str, length: int) -> None:
    longest = positions(config)
    if longest is not None and length > longest:
        raise ModelError(
            f"{name} is {length}, but {text_part(config).model_type} has {longest} positions.",
            f"Give {name}={longest} or less, or a config with more positions.",
        )
