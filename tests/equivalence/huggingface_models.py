"""Hugging Face models of the equivalence tests: real ones, made small, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from meshwright.task import Task
from meshwright.zoo.options import Option
from meshwright.zoo.reference import load_task

CONFIGS = Path(__file__).parent / "configs"

_CAUSAL: Mapping[str, Option] = {"global_batch": 8, "seq_len": 16}
_MASKED: Mapping[str, Option] = {"global_batch": 8, "seq_len": 16, "padding": 0.2}
_PAIRS: Mapping[str, Option] = {"global_batch": 8, "seq_len": 16, "target_len": 12}

_OPTIONS: Mapping[str, Mapping[str, Option]] = {
    "llama": _CAUSAL,
    "mistral": _CAUSAL,
    "qwen2": _CAUSAL,
    "qwen3": _CAUSAL,
    "gemma": _CAUSAL,
    "gemma2": _CAUSAL,
    "gpt2": _CAUSAL,
    "gpt-neox": _CAUSAL,
    "bert": _MASKED,
    "roberta": _MASKED,
    "deberta-v2": _MASKED,
    "t5": _PAIRS,
    "bart": _PAIRS,
    "vit": {"global_batch": 8},
    "clip": {"global_batch": 8, "seq_len": 12},
    "mixtral": _CAUSAL,
    "mamba": {"global_batch": 8, "seq_len": 8},
}


def _load(name: str, options: Mapping[str, Option]) -> Task:
    return load_task(f"hf:{CONFIGS / f'{name}.json'}", options)


HUGGINGFACE: Mapping[str, Callable[[], Task]] = MappingProxyType(
    {name: partial(_load, name, options) for name, options in _OPTIONS.items()}
)
