"""What named-dimension analysis finds in a small transformer."""

from __future__ import annotations

from functools import cache

from meshwright.api import Model
from meshwright.layout.groups import Analysis, Group
from meshwright.layout.types import Split
from meshwright.search.tensor import tensor_groups
from meshwright.zoo.gpt import gpt_task

LAYERS, WIDTH, HEADS, VOCAB, BATCH = 2, 24, 4, 20, 8


@cache
def analysis() -> Analysis:
    task = gpt_task(
        layers=LAYERS, width=WIDTH, heads=HEADS, vocab=VOCAB, seq_len=6, global_batch=BATCH
    )
    return Model(task).microbatch(1)[1]


def value_of(path: str) -> str:
    return next(item.value for item in analysis().program.inputs if item.path == path)


def cut_parameters(group: Group) -> dict[str, Split]:
    return {
        item.path: group.members[item.value]
        for item in analysis().program.inputs_of("parameter")
        if item.value in group.members
    }


def test_heads_cut_the_fused_projection_by_heads_and_the_next_one_by_rows() -> None:
    width = Split(0, 3, HEADS)
    group = analysis().group(value_of("blocks.0.attn.qkv.weight"), width)
    assert cut_parameters(group) == {
        "blocks.0.attn.qkv.weight": width,
        "blocks.0.attn.qkv.bias": width,
        "blocks.0.attn.proj.weight": Split(1, 1, HEADS),
    }
    # One sum is pending after the projection, one in the backward before the split.
    assert len(group.pending) == 2
    assert not group.ends


def test_the_hidden_dim_of_the_feed_forward_is_a_group() -> None:
    hidden = 4 * WIDTH
    group = analysis().group(value_of("blocks.1.mlp.fc.weight"), Split(0, 1, hidden))
    assert cut_parameters(group) == {
        "blocks.1.mlp.fc.weight": Split(0, 1, hidden),
        "blocks.1.mlp.fc.bias": Split(0, 1, hidden),
        "blocks.1.mlp.proj.weight": Split(1, 1, hidden),
    }
    assert len(group.pending) == 2


def test_the_vocabulary_is_a_group_from_the_tied_table_to_the_loss() -> None:
    group = analysis().group(value_of("token_embedding.weight"), Split(0, 1, VOCAB))
    assert cut_parameters(group) == {"token_embedding.weight": Split(0, 1, VOCAB)}
    cut = {analysis().by_name[name].target for name in group.cuts}
    assert {
        "aten.embedding.default", "aten._log_softmax.default", "aten.nll_loss_forward.default",
    } <= cut  # fmt: skip


def test_the_batch_reaches_the_loss_and_leaves_every_gradient_pending() -> None:
    program = analysis().program
    group = analysis().group(program.inputs_of("batch")[0].value, Split(0, 1, BATCH))
    assert not cut_parameters(group)
    assert not group.ends
    loss = next(op for op in program.ops if program.loss in op.results)
    assert loss.name in group.cuts
    targets = program.inputs_of("batch")[1]
    assert group.members[targets.value] == Split(0, 1, BATCH)
    gradients = {name for name in program.gradients.values() if name is not None}
    # Those of biases are a view of one, that of the tied table adds two, and that of the
    # positions, which are no batch, is made of one.
    made_by = {name: op for op in program.ops for name in op.results}

    def pends(name: str) -> bool:
        op = made_by.get(name)
        return name in group.pending or (op is not None and any(map(pends, op.operands())))

    assert all(map(pends, gradients))
    assert all(made_by[name].phase == "backward" for name in group.pending)


def test_every_member_of_a_group_finds_the_same_group() -> None:
    group = analysis().group(value_of("blocks.0.mlp.fc.weight"), Split(0, 1, 4 * WIDTH))
    for name, split in group.members.items():
        assert analysis().group(name, split) is group


def test_tensor_groups_are_those_of_megatron() -> None:
    seeds = [set(cut_parameters(group)) for group in tensor_groups(analysis(), 2)]
    expected = [{"token_embedding.weight"}]
    for layer in range(LAYERS):
        at = f"blocks.{layer}."
        expected.append({f"{at}attn.qkv.weight", f"{at}attn.qkv.bias", f"{at}attn.proj.weight"})
        expected.append({f"{at}mlp.fc.weight", f"{at}mlp.fc.bias", f"{at}mlp.proj.weight"})
    assert sorted(map(sorted, seeds)) == sorted(map(sorted, expected))
