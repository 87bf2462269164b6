"""Gathers of parameters beside compute: their order, how much is on its way, what it costs."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from meshwright.api import Model, parallelize, plan, sgd
from meshwright.cluster.mesh import Mesh
from meshwright.cost.scratch import scratch_bytes
from meshwright.layout import ahead as module
from meshwright.layout.ahead import HERE, ahead, is_later
from meshwright.layout.assignment import assign
from meshwright.layout.buckets import blocks_of
from meshwright.layout.lowered import LoweredProgram, Section
from meshwright.layout.merge import ARRIVE, merge
from meshwright.lower.lower import lower
from meshwright.plan.types import Plan
from meshwright.program.types import Op
from meshwright.runtime.comm import Communicator
from meshwright.runtime.lockstep import run_lockstep
from meshwright.simulate.executor import OWN, OWN_ON_ACCELERATORS
from meshwright.simulate.step import simulate
from meshwright.zoo.reference import load_task

sys.path.insert(0, str(Path(__file__).parents[1] / "simulate"))

from staged_programs import lowered, parsed

SMALL = {"layers": 4, "width": 32, "heads": 4, "vocab": 50, "seq_len": 8, "global_batch": 8}
# Bound by kernels, not launches.
WIDE = {"layers": 4, "width": 1024, "heads": 8, "vocab": 200, "seq_len": 256, "global_batch": 64}
# The last stores parameters over two axes: they are gathered in two steps.
STRATEGIES = ("zero=1", "zero=2", "zero=3", "data=2,tensor=2,zero=3", "data=2,context=2,zero=3")
IN_LINE = replace(OWN_ON_ACCELERATORS, overlap_gathers=False, asks_ahead=False)


@cache
def gpt() -> Model:
    return Model(load_task("zoo:gpt", {key: str(value) for key, value in SMALL.items()}))


@cache
def planned(strategy: str, bucket_bytes: int) -> Plan:
    return plan(
        gpt().task, "local:4", strategy, model=gpt(), bucket_bytes=bucket_bytes, microbatches=2
    )


def programs(strategy: str, bucket_bytes: int) -> list[LoweredProgram]:
    """Of every device, merged."""
    made = planned(strategy, bucket_bytes)
    mesh = Mesh(tuple(made.mesh.items()))
    analysis = gpt().microbatch(made.microbatches)[1]
    assignment = assign(analysis, mesh, made.decisions, made.parameters, True)
    return [
        merge(lower(analysis, assignment, mesh.coordinate(rank), bucket_bytes)) for rank in range(4)
    ]


def sections(program: LoweredProgram) -> tuple[Section, Section, Section]:
    return program.gather, program.forward, program.backward


def plain(op: Op) -> tuple[object, ...]:
    names = tuple(name.removesuffix(HERE) for name in op.operands())
    return op.name, op.target, names, op.results


@pytest.mark.parametrize("bucket_bytes", [0, 10_000])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ops_and_the_order_of_gathers_stay(strategy: str, bucket_bytes: int) -> None:
    before = programs(strategy, bucket_bytes)[0]
    for old, new in zip(sections(before), sections(ahead(before)), strict=True):
        assert old.inputs == new.inputs
        assert old.outputs == new.outputs
        later = [op.name for op in new.ops if is_later(op)]
        assert later == [op.name for op in old.ops if op.name in set(later)]
        rest = [plain(op) for op in new.ops if not is_later(op) and op.target != ARRIVE]
        assert rest == [plain(op) for op in old.ops if op.name not in set(later)]
        # Nothing is used before it is made, and nothing that was asked for before it arrived.
        there, on_way = set(new.inputs), set()
        for op in new.ops:
            assert there.issuperset(op.operands()), op.name
            if not is_later(op) and op.target != ARRIVE:
                assert on_way.isdisjoint(op.operands()), op.name
            if op.target == ARRIVE:
                on_way.difference_update(op.operands())
            results = {name for name in op.results if name is not None}
            there |= results
            on_way |= results if is_later(op) else set()
    assert any(is_later(op) for section in sections(ahead(before)) for op in section.ops)
    assert ahead(before) is ahead(before)


@pytest.mark.parametrize("strategy", ["zero=3", "data=2,context=2,zero=3"])
def test_all_devices_start_the_same_collectives(strategy: str) -> None:
    def started(program: LoweredProgram) -> list[tuple[object, ...]]:
        return [
            (op.target, dict(op.kwargs).get("axis"), is_later(op), len(op.results))
            for section in sections(program)
            for op in section.ops
            if "axis" in dict(op.kwargs) or op.target == ARRIVE
        ]

    first, *others = (started(ahead(item)) for item in programs(strategy, 10_000))
    assert all(other == first for other in others)


@pytest.mark.parametrize("limit", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("strategy", ["zero=3", "data=2,context=2,zero=3"])
def test_what_is_on_its_way_is_bounded(
    strategy: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bytes, and all that was gathered belongs to two neighbouring blocks."""
    monkeypatch.setattr(module, "AHEAD_BYTES", limit)
    before = programs(strategy, 10_000)[0]
    moved = ahead(before)
    shapes = {item.path: item.shape for item in moved.parameters}
    block, root = blocks_of(shapes), {item.value: item.path for item in moved.parameters}
    deepest = 0
    for section in sections(moved)[1:]:
        for op in section.ops:
            if is_later(op) or op.target == ARRIVE:
                root.update(zip(op.results, [root[name] for name in op.operands()], strict=True))
        gathers = [op for op in section.ops if is_later(op)]
        order: list[str] = []  # of blocks, as they are gathered
        where: dict[str, int] = {}
        for op in gathers:
            owner = block[root[next(op.operands())]]
            if not order or order[-1] != owner:
                order.append(owner)
            where.update(dict.fromkeys(op.results, len(order) - 1))
        size = {
            name: sum(moved.values[item].nbytes for item in op.results if item)
            for op in gathers for name in op.results
        }  # fmt: skip
        used = [name for op in gathers for name in op.operands()]
        largest = max(
            sum(size[op.results[0]] for op in gathers if where[op.results[0]] == unit)
            for unit in range(len(order))
        )
        on_way: dict[str, int] = {}
        for op in section.ops:
            if is_later(op):
                on_way[op.results[0]] = size[op.results[0]]
            elif op.target == ARRIVE:
                arrived = next(op.operands())
                on_way.pop(arrived)
                for source in [name for name in on_way if name in used]:
                    if where[source] <= where[arrived]:  # gathered further, and over with it
                        del on_way[source]
            else:
                continue
            asked = [item for item in on_way if item not in used]
            assert len({where[name] for name in asked}) <= 2
            assert sum(on_way.values()) <= max(min(limit, largest), 2 * max(size.values()))
            if len(asked) > 1 and not used:
                assert sum(on_way.values()) <= min(limit, largest)
            deepest = max(deepest, len(asked))
    assert deepest > 1 or limit == 1


def test_the_next_block_is_asked_for_while_this_one_computes() -> None:
    """The gather of a block's first bucket starts before the block before it has computed."""
    moved = ahead(programs("zero=3", 25 << 20)[0])
    for section, order in ((moved.forward, (0, 1, 2, 3)), (moved.backward, (3, 2, 1, 0))):
        for this, following in pairwise(order):
            asked = next(
                index for index, op in enumerate(section.ops)
                if is_later(op) and f"blocks.{following}." in next(op.operands())
            )  # fmt: skip
            computed = [
                index for index, op in enumerate(section.ops)
                if op.source.module.startswith(f"blocks.{this}.")
            ]  # fmt: skip
            assert asked < computed[len(computed) // 4]


# Time and memory


def run(
    strategy: str, sizes: Mapping[str, int], bucket_bytes: int, cluster: str, **given: Any
) -> Any:
    program = lowered("zoo:gpt", strategy, cluster, bucket_bytes=bucket_bytes, **sizes)
    options = {"microbatches": 2, "optimizer": "adamw", "memory_curve": False, **given}
    return simulate(program, parsed(cluster), **options)


@pytest.mark.parametrize("sizes", [SMALL, WIDE])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_time_is_never_worse_and_collectives_are_the_same(
    strategy: str, sizes: Mapping[str, int]
) -> None:
    for cluster in ("1x4:h100-sxm", "4x1:a100-40g-pcie"):
        for bucket_bytes in (0, 1 << 20):
            in_line = run(strategy, sizes, bucket_bytes, cluster, executor=IN_LINE)
            beside = run(strategy, sizes, bucket_bytes, cluster)
            assert beside.step_time_s <= in_line.step_time_s * (1 + 1e-12)
            assert beside.collectives == in_line.collectives
            assert beside.before_merging == in_line.before_merging
            assert beside.communication_s == pytest.approx(in_line.communication_s)
            if sizes is WIDE:
                assert beside.step_time_s < in_line.step_time_s
                assert beside.exposed_communication_s < in_line.exposed_communication_s


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("layers", [3, 5])
def test_the_peak_is_that_of_the_program_that_runs(strategy: str, layers: int) -> None:
    """Block by block as op by op, of the very program; what gathers work with comes on top."""
    sizes = {**SMALL, "layers": layers}
    program = lowered("zoo:gpt", strategy, "local:4", bucket_bytes=0, **sizes)
    options: dict[str, Any] = {"microbatches": 2, "optimizer": "sgd", "memory_curve": False}
    by_op = simulate(ahead(merge(program)), parsed("local:4"), executor=OWN, **options)
    by_block = simulate(program, parsed("local:4"), executor=OWN_ON_ACCELERATORS, **options)
    in_line = simulate(program, parsed("local:4"), executor=OWN, **options)
    in_line_by_block = simulate(program, parsed("local:4"), executor=IN_LINE, **options)
    moved = ahead(merge(program))
    aside = max(
        scratch_bytes(op, moved.values, moved.mesh.extent(str(dict(op.kwargs)["axis"])))
        for section in sections(moved) for op in section.ops if is_later(op)
    )  # fmt: skip
    assert by_block.memory["gathered"] == by_op.memory["gathered"] + aside
    for kind in ("parameters", "gradients", "batch", "buffers"):
        assert by_block.memory[kind] == by_op.memory[kind]
    # A few bytes of collectives' own apart, which are the same without.
    assert (
        by_block.memory["activations"] - in_line_by_block.memory["activations"]
        == by_op.memory["activations"] - in_line.memory["activations"]
    )
    assert abs(by_block.peak_memory_bytes - aside - by_op.peak_memory_bytes) < 512
    if strategy == "zero=3":
        block = 12 * 32 * 32 * 4 + 13 * 32 * 4
        assert 0 < by_op.memory["gathered"] - in_line.memory["gathered"] <= 2 * block


@pytest.mark.parametrize("bucket_bytes", [1 << 16, 25 << 20])
@pytest.mark.parametrize("strategy", ["zero=1", "zero=3", "data=2,context=2,zero=3"])
def test_blocks_that_stand_for_others_ask_for_each_other(strategy: str, bucket_bytes: int) -> None:
    cluster = "4x1:a100-40g-pcie"
    sizes = {**WIDE, "width": 256}
    whole = run(strategy, {**sizes, "layers": 8}, bucket_bytes, cluster)
    short = run(strategy, {**sizes, "layers": 3}, bucket_bytes, cluster, stands_for={"blocks.1": 6})
    assert short.collectives == whole.collectives
    assert short.step_time_s == pytest.approx(whole.step_time_s, rel=1e-6)
    assert short.peak_memory_bytes == pytest.approx(whole.peak_memory_bytes, rel=1e-3)


# What runs


@pytest.mark.parametrize("strategy", ["zero=3", "data=2,context=2,zero=3"])
def test_gathered_parameters_of_two_blocks_are_alive_at_most(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch holds them, counted whenever one more is asked for: more than what is in use
    at that moment, and no more than two blocks' in all."""
    made = planned(strategy, 10_000)
    seen: dict[int, list[int]] = {}

    def watch(comm: Communicator) -> None:
        alive: list[tuple[weakref.ref[Tensor], int]] = []
        gather = comm.all_gather_many

        def watched(*args: Any, **options: Any) -> list[Tensor]:
            results = gather(*args, **options)
            if options.get("later"):
                alive.extend((weakref.ref(x), x.nbytes) for x in results)
                seen.setdefault(comm.rank, []).append(
                    sum(nbytes for reference, nbytes in alive if reference() is not None)
                )
            return results

        comm.all_gather_many = watched  # type: ignore[method-assign]

    def rank(comm: Communicator) -> Counter[tuple[str, str]]:
        job = parallelize(
            gpt().task, optimizer=sgd, plan=made, model=gpt(), communicator=comm, device="cpu",
            overlap=True,
        )  # fmt: skip
        watch(comm)
        job.reset_counts()
        job.step(gpt().task.batch)
        assert "arrive(" in job.text("forward")
        return Counter({(c.kind, c.axis): c.count for c in job.executed()})

    found = run_lockstep(Mesh(tuple(made.mesh.items())), rank)
    expected = Counter({(c.kind, c.axis): c.count for c in made.predicted.collectives})
    assert all(item == expected for item in found)
    block = 12 * 32 * 32 * 4 + 13 * 32 * 4
    for held in seen.values():
        assert 1.2 * block < max(held) <= 2 * block * (1.5 if "context" in strategy else 1)
