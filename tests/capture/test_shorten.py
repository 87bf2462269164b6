"""A model is captured from few of its blocks exactly as it would be from all, or not at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from meshwright.api import Model
from meshwright.capture.shorten import few_of, find, forward_of, rolled_up, whole_of
from meshwright.capture.suppose import suppose
from meshwright.capture.trace import capture
from meshwright.program.rolled import Irregular
from meshwright.task import Task
from meshwright.zoo.reference import load_task

WIDTH = 8


class Block(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(self.norm(x))))
        return out


class Stack(nn.Module):
    """Blocks in a row; what a test varies is a method."""

    def __init__(self, count: int = 9) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(self.block(index) for index in range(count))
        self.last = nn.Linear(WIDTH, WIDTH)

    def block(self, index: int) -> nn.Module:
        return Block(index)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x)
        return out


class Convolutions(Stack):
    """Batch norms, whose statistics are updates of buffers."""

    def block(self, index: int) -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())


class Turns(Stack):
    """Two kinds of blocks in turns, told by what is shared with all blocks of the kind."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        masks = (torch.relu(x), torch.sigmoid(x))
        for number, block in enumerate(self.blocks):
            x = block(x) * masks[number % 2] + number % 2
        out: Tensor = self.last(x)
        return out


class Outside(Stack):
    """What passes between blocks is computed around them, from a parameter that all share."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = 0.5 * x + block(x * self.first.bias) + torch.tensor(3.0)
        out: Tensor = self.last(x)
        return out


class TwoStacks(nn.Module):
    """The second list takes at every block what the first gave."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Stack(8), Stack(10)

    def forward(self, x: Tensor) -> Tensor:
        given = self.encoder(x)
        for block in self.decoder.blocks:
            x = block(x + given)
        return x


class Detached(Stack):
    """One block passes no gradient on; its ops are those of the others."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, block in enumerate(self.blocks):
            x = x + block(x.detach() if number == 5 else x)
        out: Tensor = self.last(x)
        return out


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class OwnBackward(Stack):
    """A function of the user's own, whose backward differs in one block."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, block in enumerate(self.blocks):
            x = Scaled.apply(block(x), 2.0 if number == 5 else 1.0)
        out: Tensor = self.last(x)
        return out


class Hooked(Stack):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 5:
                x.register_hook(lambda gradient: gradient * 2)
        out: Tensor = self.last(x)
        return out


class Counted(Stack):
    """Looks at how many blocks there are."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / len(self.blocks)


class Gathered(Stack):
    """All blocks' results are used at the end."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        seen = []
        for block in self.blocks:
            x = block(x)
            seen.append(x)
        out: Tensor = self.last(torch.stack(seen).sum(0))
        return out


class Parameters(nn.Module):
    """A loop over parameters, without modules."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(WIDTH, WIDTH) for _ in range(9))

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = torch.relu(x @ weight)
        return x


def task_of(kind: type[nn.Module]) -> Task:
    return Task(
        model=kind, loss=lambda model, x: model(x).square().mean(), batch=torch.zeros(8, WIDTH),
        name=kind.__name__,
    )  # fmt: skip


def by_few(task: Task):
    """(the Program from few blocks, its runs' periods, the Program from all)."""
    model = Model(task)
    forward = forward_of(task, task.batch, model.blueprint)
    found = find(model.blueprint.module, forward)
    assert found is not None
    rolled, _ = rolled_up(task, task.batch, model.blueprint, found)
    whole = whole_of(rolled, forward).program
    assert len(few_of(rolled).program.ops) < len(whole.ops)
    periods = [(len(run.units[0]), len(run.units)) for run in found.runs]
    return whole, periods, capture(task, blueprint=model.blueprint).program


def same(one, other) -> None:
    assert one.inputs == other.inputs
    assert one.ops == other.ops
    assert one == other
    assert [op.source for op in one.ops] == [op.source for op in other.ops]
    assert list(one.values) == list(other.values)
    assert list(one.gradients) == list(other.gradients)


@pytest.mark.parametrize(
    ("kind", "periods"),
    [
        (Stack, [(1, 7)]),
        (Convolutions, [(1, 7)]),
        (Outside, [(1, 7)]),
        (TwoStacks, [(1, 6), (1, 8)]),
    ],
)
def test_the_program_from_few_blocks_is_that_from_all(kind, periods):
    mine, found, whole = by_few(task_of(kind))
    assert found == periods
    same(mine, whole)


def test_blocks_in_turns_are_taken_in_pairs():
    class Many(Turns):
        def __init__(self) -> None:
            super().__init__(17)

    mine, found, whole = by_few(task_of(Many))
    assert [period for period, _ in found] == [2]
    same(mine, whole)


def test_a_model_of_the_zoo_with_dropout():
    task = load_task("zoo:gpt", {"layers": "8", "width": "16", "dropout": "0.1", "seq_len": "8"})
    mine, _, whole = by_few(task)
    same(mine, whole)


HF = {
    "llama": {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": 2},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 16,
               "sliding_window": 8},
    "bert": {"architectures": ["BertForMaskedLM"]},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "t5": {"architectures": ["T5ForConditionalGeneration"], "d_model": 32, "d_ff": 64, "d_kv": 8,
           "num_layers": 9, "num_decoder_layers": 8, "num_heads": 4, "pad_token_id": 0,
           "decoder_start_token_id": 0},
}  # fmt: skip


@pytest.mark.all
@pytest.mark.parametrize("kind", HF)
def test_models_of_hugging_face(kind, tmp_path):
    import json

    plain = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
             "num_hidden_layers": 8, "max_position_embeddings": 64}  # fmt: skip
    fields = {"model_type": kind, "vocab_size": 64, **({} if kind == "t5" else plain), **HF[kind]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    sizes = {"seq_len": "16", "global_batch": "4"}
    mine, found, whole = by_few(load_task(f"hf:{tmp_path}/config.json", sizes))
    assert found[0][0] == (2 if kind == "gemma2" else 1)
    same(mine, whole)


@pytest.mark.parametrize("kind", [Detached, OwnBackward, Hooked, Counted, Gathered, Parameters])
def test_what_few_blocks_can_not_say_is_planned_from_all(kind):
    task = task_of(kind)
    model = Model(task)
    analysis = model.whole(1)
    assert not model.shorten
    assert model.why_whole
    assert analysis is model.microbatch(1)[1]


def test_a_proof_that_fails_says_where():
    task = task_of(Counted)
    model = Model(task)
    forward = forward_of(task, task.batch, model.blueprint)
    found = find(model.blueprint.module, forward)
    assert found is not None
    rolled, _ = rolled_up(task, task.batch, model.blueprint, found)
    with pytest.raises(Irregular, match="div"):
        whole_of(rolled, forward)


def test_layers_that_look_at_their_number_are_no_run():
    class Numbered(Stack):
        def forward(self, x: Tensor) -> Tensor:
            for number, block in enumerate(self.blocks):
                x = block(x) * float(number)
            return x

    task = task_of(Numbered)
    model = Model(task)
    assert find(model.blueprint.module, forward_of(task, task.batch, model.blueprint)) is None


def test_the_module_is_left_as_it_was():
    task = task_of(Stack)
    model = Model(task)
    before = list(model.blueprint.module.state_dict())
    model.outline(1)
    assert list(model.blueprint.module.state_dict()) == before
    assert len(model.blueprint.module.blocks) == 9


@pytest.mark.parametrize("kind", [Stack, Convolutions, Outside, TwoStacks])
def test_what_is_supposed_is_what_the_forward_shows(kind):
    task = task_of(kind)
    model = Model(task)
    forward = forward_of(task, task.batch, model.blueprint)
    assert suppose(model.blueprint.module) == find(model.blueprint.module, forward)


class Windowed(Stack):
    """Every other block has another setting."""

    def block(self, index: int) -> nn.Module:
        made = Block(index)
        made.slope = 0.5 if index % 2 else 0.25
        return made


def test_settings_tell_blocks_apart_and_their_numbers_do_not():
    found = suppose(Windowed(17))
    assert found is not None
    assert [len(run.units[0]) for run in found.runs] == [2]


def test_members_that_share_a_parameter_are_not_supposed_to_be_alike():
    module = Stack()
    for block in module.blocks:
        block.up.weight = module.blocks[0].up.weight
    assert suppose(module) is None


def test_a_forward_is_run_for_the_proof_alone():
    """Equal blocks cost one forward of the whole model, at the count that is laid out."""
    model = Model(task_of(Stack))
    assert model.outline(1).shortened
    assert model.outline(2).shortened
    assert not model._forwards
    same(model.outline(2).whole.program, model.microbatch(2)[1].program)


def test_what_is_wrongly_supposed_is_looked_for_in_the_forward():
    class Many(Turns):
        def __init__(self) -> None:
            super().__init__(17)

    model = Model(task_of(Many))
    supposed = suppose(model.blueprint.module)
    assert supposed is not None
    assert [len(run.units[0]) for run in supposed.runs] == [1]
    outline = model.outline(1)
    assert outline.shortened
    assert len(outline.stands_for) == 2
    same(outline.whole.program, model.microbatch(1)[1].program)


def test_what_only_the_proof_refutes_is_looked_for_in_the_forward():
    class Late(Stack):
        """A block that is left out does otherwise than those that are kept."""

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = torch.tanh(block(x)) if block.index == 5 else block(x)
            out: Tensor = self.last(x)
            return out

    class Longer(Late):
        def __init__(self) -> None:
            super().__init__(14)

    model = Model(task_of(Longer))
    first = model.outline(1)
    assert first.shortened
    whole = model.whole(1)
    same(whole.program, model.microbatch(1)[1].program)
    assert model.outline(1) is not first
    assert sum(op.name.startswith("tanh") for op in whole.program.ops) >= 1


def test_what_few_blocks_can_not_run_says_nothing_on_the_way(caplog):
    class Growing(Stack):
        """Every block but the first takes what the one before widened: none can be left out."""

        def block(self, index: int) -> nn.Module:
            made = Block(index)
            made.up = nn.Linear(WIDTH, 2 * WIDTH)
            return made

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            kept = [block(x) for block in self.blocks]
            out: Tensor = self.last(torch.cat(kept, -1) @ torch.ones(9 * WIDTH, WIDTH))
            return out

    model = Model(task_of(Growing))
    assert suppose(model.blueprint.module) is not None
    assert not model.outline(1).shortened
    assert not caplog.records
