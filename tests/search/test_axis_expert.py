"""Which device has which expert of a looped mixture."""

from __future__ import annotations

from collections import Counter

import pytest

from meshwright.api import Model
from meshwright.errors import StrategyError
from meshwright.search import axis_expert
from meshwright.zoo.reference import load_task

SMALL = {
    "num_hidden_layers": "3", "hidden_size": "32", "intermediate_size": "64",
    "num_attention_heads": "4", "num_key_value_heads": "2", "vocab_size": "64",
    "num_local_experts": "4", "seq_len": "16", "global_batch": "16",
}  # fmt: skip


@pytest.fixture(scope="module")
def mixtral():
    return Model(load_task("hf:mixtral-8x7b", SMALL)).microbatch(1)[1]


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_each_mixture_is_dealt_out_by_itself(mixtral, parts):
    """Every device has its share of every layer's experts, so that none waits for another."""
    owned = [d for d in axis_expert.decisions(mixtral, parts) if d.owner is not None]
    for layer in range(3):
        experts = {
            d.value.split(".experts.")[1].split(".")[0]: d.owner
            for d in owned
            if f"layers.{layer}." in d.value
        }
        assert len(experts) == 4
        shares = Counter(experts.values())
        assert set(shares) == set(range(parts))
        assert shares[0] == max(shares.values()) == -(-4 // parts)


def test_experts_of_several_layers_are_not_one_mixture(mixtral):
    with pytest.raises(StrategyError, match="at least 8"):
        axis_expert.decisions(mixtral, 8)
