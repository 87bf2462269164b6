"""Parameters gathered and gradients reduced beside compute, by gloo processes and in lockstep."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from meshwright.api import Model, parallelize, plan, sgd
from meshwright.cluster.mesh import Mesh
from meshwright.errors import RunError
from meshwright.plan.types import Plan
from meshwright.runtime.beside import Pending, Work
from meshwright.runtime.comm import Communicator
from meshwright.runtime.lockstep import LockstepTransport, run_lockstep
from meshwright.runtime.worker import init_process
from meshwright.zoo.reference import load_task

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from distributed import fork_processes, run_processes

OPTIONS = {"layers": "2", "width": "32", "heads": "4", "seq_len": "16", "global_batch": "8"}
# A table that is cut in several steps, tied to the head; sums over two axes; whole gradients.
STRATEGIES = ("data", "zero=1", "zero=2", "data=2,tensor=2,zero=3", "replica=2,data=2,zero=3")
BUCKET = 20_000  # several to a model


@cache
def gpt() -> Model:
    """Captured once, before processes fork."""
    return Model(load_task("zoo:gpt", OPTIONS))


def steps(made: Plan, model: Model, comm: Communicator | None, overlap: bool) -> list[Any]:
    """What two steps give: losses, norms, all gradients, and the collectives that ran."""
    job = parallelize(
        model.task, optimizer=sgd, plan=made, model=model, communicator=comm, device="cpu",
        overlap=overlap,
    )  # fmt: skip
    seen: list[Any] = []
    for _ in range(2):
        job.reset_counts()
        done = job.step(model.task.batch)
        seen.append([done.loss, done.gradient_norm])
        seen.append([c.model_dump() for c in job.executed()])
        seen.append(
            {
                path: x.double().flatten().tolist()
                for path, x in job.trainer.gradients().items()
                if x is not None
            }
        )
    return seen


def planned(model: Model, microbatches: int, strategies: Sequence[str]) -> list[Plan]:
    return [
        plan(
            model.task, "local:4", strategy, model=model, microbatches=microbatches,
            clip_norm=0.5, bucket_bytes=BUCKET,
        )
        for strategy in strategies
    ]  # fmt: skip


@pytest.mark.parametrize(("microbatches", "strategies"), [(1, STRATEGIES[:1]), (2, STRATEGIES)])
def test_the_order_of_work_changes_no_bit(microbatches: int, strategies: Sequence[str]) -> None:
    model = gpt()
    for made in planned(model, microbatches, strategies):
        mesh = Mesh(tuple(made.mesh.items()))
        plain = run_lockstep(mesh, lambda comm, made=made: steps(made, model, comm, False))
        beside = run_lockstep(mesh, lambda comm, made=made: steps(made, model, comm, True))
        assert plain == beside, made.strategy
        counted = [c.model_dump() for c in made.predicted.collectives]
        assert plain[0][1] == plain[0][4] == counted


class AtLast:
    """Does nothing until it is waited for, in the order in which it was started."""

    def __init__(self) -> None:
        self.started: list[tuple[Work, Sequence[Pending], Pending]] = []
        self.most = 0

    def start(
        self, axis: str, work: Work, needs: Sequence[Pending], tensors: Sequence[Tensor]
    ) -> Pending:
        outer = self

        class Waiting(Pending):
            def wait(self) -> None:
                while any(item is self for *_, item in outer.started):
                    outer.next()

        pending = Waiting()
        self.started.append((work, needs, pending))
        self.most = max(self.most, len(self.started))
        return pending

    def next(self) -> None:
        work, needs, _ = self.started.pop(0)
        assert not any(item is need for need in needs for *_, item in self.started)
        work()

    def busy(self, axis: str) -> bool:
        return bool(self.started)

    def settle(self) -> None:
        while self.started:
            self.next()


@pytest.mark.parametrize("strategy", [STRATEGIES[1], *STRATEGIES[3:], "data=2,context=2,zero=3"])
def test_nothing_is_used_before_it_is_waited_for(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not there yet is NaN; a stream that falls behind changes no bit."""
    model = gpt()
    (made,) = planned(model, 2, [strategy])
    mesh = Mesh(tuple(made.mesh.items()))
    plain = run_lockstep(mesh, lambda comm: steps(made, model, comm, False))
    late: list[AtLast] = []

    def beside(transport: LockstepTransport) -> AtLast:
        late.append(AtLast())
        return late[-1]

    monkeypatch.setattr(LockstepTransport, "beside", beside)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert torch.empty(2).isnan().all()
        assert plain == run_lockstep(mesh, lambda comm: steps(made, model, comm, True))
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(late) == 4
    assert all(item.most > 1 and not item.started for item in late)


def test_a_last_microbatch_of_another_size() -> None:
    """It has a program of its own; the sums of the one before are reduced after it."""
    model = Model(load_task("zoo:gpt", OPTIONS | {"global_batch": "12"}))
    made = plan(model.task, "local:2", "zero=1", model=model, microbatches=3, bucket_bytes=BUCKET)
    ids, targets = model.task.batch
    smaller = (ids[:10], targets[:10])

    def rank(comm: Communicator, overlap: bool) -> list[Any]:
        job = parallelize(
            model.task, optimizer=sgd, plan=made, model=model, communicator=comm, device="cpu",
            overlap=overlap,
        )  # fmt: skip
        losses = [job.step(batch).loss for batch in (smaller, model.task.batch)]
        return [losses, {path: x.detach() for path, x in job.trainer.parameters.items()}]

    mesh = Mesh((("data", 2),))
    plain = run_lockstep(mesh, lambda comm: rank(comm, False))
    beside = run_lockstep(mesh, lambda comm: rank(comm, True))
    for (losses, parameters), (others, their_parameters) in zip(plain, beside, strict=True):
        assert losses == pytest.approx(others, rel=1e-6)
        for path, x in parameters.items():
            torch.testing.assert_close(x, their_parameters[path], rtol=1e-5, atol=1e-7)


def test_a_device_with_less_to_do_keeps_the_plain_order() -> None:
    """Five classes over four devices leave the last one none: what runs differs between them."""
    model = Model(load_task("zoo:mlp", {"classes": "5", "hidden": "16"}))
    made = plan(model.task, "local:4", "tensor", model=model)
    mesh = Mesh(tuple(made.mesh.items()))
    plain = run_lockstep(mesh, lambda comm: steps(made, model, comm, False))
    assert plain == run_lockstep(mesh, lambda comm: steps(made, model, comm, True))


def both(payload: dict[str, Any]) -> list[list[Any]]:
    init_process(timeout_s=60)
    model = gpt()
    plans = [Plan.model_validate(text) for text in payload["plans"]]
    return [[steps(made, model, None, overlap) for overlap in (False, True)] for made in plans]


@pytest.mark.processes
@pytest.mark.timeout(280)
def test_on_four_processes(run_dir: Path) -> None:
    # The last gathers parameters in two steps, over one axis and then over the other.
    plans = planned(gpt(), 2, ("replica=2,data=2,zero=3", "data=2,context=2,zero=3"))
    payload = {"plans": [made.model_dump(mode="json") for made in plans]}
    for ran in fork_processes(both, 4, run_dir, payload, timeout_s=240):
        for made, (plain, beside) in zip(plans, ran, strict=True):
            counted = [c.model_dump() for c in made.predicted.collectives]
            for step in range(2):
                assert beside[3 * step] == pytest.approx(plain[3 * step], rel=1e-5)
                assert plain[3 * step + 1] == beside[3 * step + 1] == counted
                mine, theirs = plain[3 * step + 2], beside[3 * step + 2]
                assert mine.keys() == theirs.keys()
                for path, x in mine.items():
                    assert theirs[path] == pytest.approx(x, rel=1e-4, abs=1e-6), path


def fails_under_way(payload: dict[str, Any]) -> None:
    """Rank 1 fails when its backward has started a reduction for which the other waits."""
    rank = init_process(timeout_s=60).rank
    model = Model(load_task("zoo:gpt", OPTIONS))
    made = Plan.model_validate(payload["plan"])
    job = parallelize(model.task, optimizer=sgd, plan=made, model=model, device="cpu", overlap=True)
    job.step(model.task.batch)
    if rank == 1:
        send, sent = job.comm.all_reduce_many, []

        def failing(*args: Any, **kwargs: Any) -> Any:
            if sent:
                raise ZeroDivisionError("one over nothing")
            sent.append(send(*args, **kwargs))
            return sent[0]

        job.comm.all_reduce_many = failing
    job.step(model.task.batch)


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_a_rank_that_fails_beside_a_reduction(run_dir: Path) -> None:
    model = gpt()
    made = plan(model.task, "local:2", "data", model=model, bucket_bytes=BUCKET)
    started = time.monotonic()
    with pytest.raises(RunError, match="one over nothing"):
        run_processes(fails_under_way, 2, run_dir, {"plan": made.model_dump(mode="json")})
    assert time.monotonic() - started < 60
