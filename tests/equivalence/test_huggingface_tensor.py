"""The tensor strategy really cuts each family: attention heads and feed-forward alike."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from huggingface_models import HUGGINGFACE
from matrix import model

from meshwright.cluster.mesh import Mesh
from meshwright.cost.flops import op_flops
from meshwright.layout.assignment import assign
from meshwright.lower.lower import lower
from meshwright.search.named import candidate

pytest.importorskip("transformers", reason="the hf extra is not installed")

_MOVES = ("mesh.all_reduce", "mesh.all_gather", "mesh.reduce_scatter", "mesh.all_to_all")

# A layer of each, not the first, which may also be what waits for the embedding's sum.
# In it: one all-reduce after attention and one after the feed-forward, and one for each on
# the way back.
MEGATRON = {
    "llama": "model.layers.1", "mistral": "model.layers.1", "qwen2": "model.layers.1",
    "qwen3": "model.layers.1", "gemma2": "model.layers.1", "gpt2": "transformer.h.1",
    "gpt-neox": "gpt_neox.layers.1", "bert": "bert.encoder.layer.1",
    "roberta": "roberta.encoder.layer.1", "bart": "model.encoder.layers.1",
    "vit": "vit.encoder.layer.1", "clip": "vision_model.encoder.layers.1",
}  # fmt: skip


@cache
def lowered(name, parts):
    analysis, mesh = model(name).microbatch(1)[1], Mesh((("tensor", parts),))
    program = analysis.program
    chosen = candidate(analysis, mesh, zero=0, microbatches=1)
    made = lower(analysis, assign(analysis, mesh, chosen.decisions, chosen.parameters),
                 {"tensor": 0})  # fmt: skip
    return program, made, [*made.forward.ops, *made.backward.ops]


@pytest.mark.parametrize("name", HUGGINGFACE)
def test_matrix_work_is_divided(name):
    program, made, ops = lowered(name, 2)
    whole = sum(op_flops(op, program.values) for op in program.ops)
    mine = sum(op_flops(op, made.values) for op in ops if not op.target.startswith("mesh."))
    # Small models have small parts that are worth no cut; real ones come closer to a half.
    assert mine <= 0.54 * whole


@pytest.mark.parametrize("name", MEGATRON)
def test_a_layer_has_four_all_reduces_and_nothing_else(name):
    _, _, ops = lowered(name, 2)
    layer = MEGATRON[name]
    moves = Counter(
        op.target
        for op in ops
        if op.target in _MOVES and f"{op.source.module}.".startswith(f"{layer}.")
    )
    assert set(moves) <= {"mesh.all_reduce"}
    assert moves["mesh.all_reduce"] == 4
