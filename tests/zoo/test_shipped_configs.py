"""Configs that ship under short names: found, their dims those that were published."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from meshwright.errors import ModelError
from meshwright.zoo import huggingface_kinds as kinds
from meshwright.zoo.huggingface_config import import_transformers, make_config
from meshwright.zoo.reference import load_task
from meshwright.zoo.shipped import close_names, shipped_config, shipped_names

DEPTHS = (
    "num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "encoder_layers",
    "decoder_layers",
)  # fmt: skip
# Their many experts take seconds to make, even without memory.
SLOW = {"deepseek-v2-lite", "deepseek-v3", "olmoe-1b-7b", "qwen-3-30b-a3b", "qwen-3-235b-a22b"}


def parameters(name: str, depth: int | None) -> int:
    fields, _ = shipped_config(name)
    fields |= {key: depth for key in DEPTHS if depth is not None and key in fields}
    config = make_config(fields, name)
    auto = kinds.KINDS[kinds.pick(config, None)].auto
    with torch.device("meta"):
        built: nn.Module = getattr(import_transformers(), auto).from_config(config)
    return sum(item.numel() for item in built.parameters())


def counted(name: str) -> int:
    """Of all layers, from what one layer more adds: layers beyond the fourth are alike."""
    fields, _ = shipped_config(name)
    depth = next((fields[key] for key in DEPTHS if key in fields), None)
    if depth is None:
        return parameters(name, None)
    few, more = (3, 4) if name in SLOW else (1, 2)
    some = parameters(name, few)
    return some + (depth - few) * (parameters(name, more) - some)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.all] if n in SLOW else []) for n in shipped_names()],
)
def test_as_many_parameters_as_were_published(name: str) -> None:
    _, about = shipped_config(name)
    assert counted(name) == pytest.approx(about.parameters, rel=0.01)
    assert "https://" in about.source


def test_the_models_that_people_plan_for_are_there() -> None:
    assert set(shipped_names()) >= {
        "llama-2-7b", "llama-2-13b", "llama-2-70b", "llama-3-8b", "llama-3-70b", "llama-3-405b",
        "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "gpt-3-175b", "gpt-1t", "mistral-7b",
        "mixtral-8x7b", "mixtral-8x22b", "bert-base", "bert-large", "t5-large", "qwen-2.5-7b",
        "qwen-2.5-72b", "gemma-2-9b", "gemma-2-27b", "vit-large",
    }  # fmt: skip


def test_a_short_name_is_a_model_with_options() -> None:
    task = load_task("hf:gpt2", {"n_layer": "2", "seq_len": "32", "global_batch": "4"})
    assert task.name == "gpt2"
    assert task.batch["input_ids"].shape == (4, 32)


def test_a_config_that_lies_there_comes_first(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").write_text('{"model_type": "gpt2", "n_layer": 1, "n_embd": 12}')
    assert load_task("hf:gpt2", {"n_head": "2"}).name == "gpt2"
    with pytest.raises(ModelError, match="head"):
        load_task("hf:gpt2", {"nhead": "2"})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("llama3-8b", "llama-3-8b"),
        ("Llama-3-8B", "llama-3-8b"),
        ("meta-llama/Meta-Llama-3-8B", "llama-3-8b"),
        ("llama-3-80b", "llama-3-8b"),
        ("mixtral8x7b", "mixtral-8x7b"),
        ("bert-larg", "bert-large"),
        ("gpt3-175b", "gpt-3-175b"),
        ("qwen2.5-7b", "qwen-2.5-7b"),
    ],
)
def test_a_misspelt_name_gets_close_ones(written: str, meant: str) -> None:
    assert meant in close_names(written)
    with pytest.raises(ModelError) as caught:
        load_task(f"hf:{written}")
    assert f"hf:{meant}" in caught.value.remedy
    assert "doctor --models" in caught.value.remedy
