"""Sizes that values decide: every plan gives the numbers of one device."""

from __future__ import annotations

from pathlib import Path

import pytest

from equivalence.mixtures import LOSSES, STYLES, looped, mixtral, tagger
from meshwright.api import Model, parallelize, plan, sgd, verify
from meshwright.cluster.mesh import Mesh
from meshwright.errors import PlanError, StrategyError
from meshwright.plan.file import load_plan, save_plan
from meshwright.runtime.comm import Communicator
from meshwright.runtime.lockstep import run_lockstep
from meshwright.task import Task


def equal(task: Task, *strategies: str) -> Model:
    model = Model(task)
    for strategy in strategies:
        found = verify(task, "local:4", strategy, model=model)
        assert found.equal, (strategy, found)
    return model


@pytest.mark.parametrize("style", STYLES)
def test_looped_experts(style: str) -> None:
    equal(looped(style), "data=4,zero=3", "data=2,tensor=2", "expert=4", "data=2,expert=2")


def test_experts_without_bias_over_two_axes() -> None:
    equal(looped("where", bias=0), "expert=2,tensor=2", "tensor=4")


@pytest.mark.parametrize("style", ["where", "skip", "masked"])
def test_experts_that_get_no_token(style: str) -> None:
    equal(looped(style, unused=2), "data=4", "expert=4", "expert=2,tensor=2")


def test_more_experts_than_devices_divide() -> None:
    equal(looped("where", experts=6), "expert=4", "data=2,expert=2")


def test_mixtral_of_hugging_face_as_it_is() -> None:
    model = equal(mixtral(), "data=4", "tensor=4", "expert=4", "data=2,expert=2,zero=3")
    noted = model.microbatch(1)[0].program.assumptions
    assert [item.source.code for item in noted] == ["for expert_idx in expert_hit:"]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_what_a_mask_selects(loss: str) -> None:
    equal(tagger(loss), "data=4", "data=2,tensor=2")


def test_each_device_stores_its_own_experts_alone() -> None:
    task = looped("where", experts=8, bias=0)
    made = plan(task, "local:4", "expert=4")
    model = Model(task)

    def held(communicator: Communicator) -> dict[str, int]:
        job = parallelize(
            task, optimizer=sgd, plan=made, communicator=communicator, model=model, device="cpu"
        )
        job.step(task.batch)
        momentum = job.trainer.optimizer.state
        return {
            path: parameter.numel()
            for path, parameter in job.trainer.parameters.items()
            if path.startswith("experts.")
            and momentum[parameter]["momentum_buffer"].numel() == parameter.numel()
        }

    everyone = run_lockstep(Mesh((("expert", 4),)), held)
    for device, sizes in enumerate(everyone):
        assert len(sizes) == 16
        mine = {int(path.split(".")[1]) for path, size in sizes.items() if size}
        assert mine == {device, device + 4}
        assert sum(sizes.values()) == 2 * 2 * 16 * 24


def test_around_a_looped_mixture_tokens_are_exchanged_once() -> None:
    made = plan(mixtral(), "local:4", "expert=4")
    inside = [item for item in made.origins if item.module.endswith("moe")]
    # Hidden states, routing weights (as two factors) and chosen experts.
    assert {(item.part, item.kind): item.count for item in inside} == {
        ("forward", "all_gather"): 4,
        ("backward", "all_gather"): 1,
        # The gradient of the weights: several ops use it, so it is summed before them, once.
        ("backward", "reduce_scatter"): 1,
    }


def test_lists_are_cut_with_the_batch() -> None:
    made = plan(looped("where"), "local:4", "data=4")
    assert {item.kind for item in made.predicted.collectives} == {"all_reduce"}
    assert not made.remarks


def test_a_plan_tells_what_it_takes_for_granted_and_what_stays_whole() -> None:
    assert any("a condition on a length is False" in line
               for line in plan(looped("skip"), "local:4", "data=4").remarks)  # fmt: skip
    assert any("stay whole on every device" in line
               for line in plan(tagger("mean"), "local:4", "data=4").remarks)  # fmt: skip


def test_an_owner_that_the_axis_does_not_have() -> None:
    task = looped("where")
    made = plan(task, "local:4", "expert=4")
    wrong = tuple(item.model_copy(update={"owner": 4}) for item in made.decisions[:1])
    with pytest.raises(PlanError, match=r"of the axis 'expert' own .*, but the axis has 4"):
        verify(task, plan=made.model_copy(update={"decisions": wrong}))


def test_owners_are_kept_in_a_plan_file(tmp_path: Path) -> None:
    task = looped("where", bias=0)
    made = plan(task, "local:4", "data=2,expert=2")
    save_plan(made, tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again == made
    assert {item.owner for item in again.decisions} == {None, 0, 1}
    assert verify(task, plan=again, steps=1).equal


def test_a_model_without_experts_has_no_expert_axis() -> None:
    with pytest.raises(StrategyError, match="no experts to divide over an expert axis"):
        plan(tagger("mean"), "local:4", "expert=4")
    with pytest.raises(StrategyError, match="no experts"):
        plan(looped("where", experts=2), "local:4", "expert=4")
