"""Stock Hugging Face models, untouched, without their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from eager_step import compare

from meshwright.task import Task

transformers = pytest.importorskip("transformers")

SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL)).train()


def qwen() -> Any:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, head_dim=8)).train()


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.0
    )
    return transformers.GPT2LMHeadModel(config).train()


def bert() -> Any:
    config = transformers.BertConfig(**{**SMALL, "num_key_value_heads": None})
    config.attention_probs_dropout_prob = 0.0
    return transformers.BertForMaskedLM(config).train()


def test_masks_are_not_made_without_need() -> None:
    ids = torch.zeros(2, 16, dtype=torch.int64)
    program = compare(Task(llama, None, {"input_ids": ids, "labels": ids})).captured.program
    attention = [op for op in program.phase_ops("forward") if "attention" in op.target]
    assert attention
    for op in attention:
        assert op.args[4] is True  # is_causal
        assert dict(op.kwargs).get("attn_mask") is None


@pytest.mark.parametrize("factory", [llama, qwen, gpt2, bert])
def test_language_models(factory: Any) -> None:
    ids = torch.randint(64, (2, 16), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    compare(Task(factory, None, batch))
