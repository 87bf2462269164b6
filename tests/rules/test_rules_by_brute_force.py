"""Every rule, on real tensors: cut, run part by part, combine, compare with the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import meshwright.as_is  # noqa: F401  (registers ops)
from meshwright.lower.choose import allowed
from meshwright.lower.special_random import RANDOM
from meshwright.rules import attention_cuda, targets
from rules.brute_force import cuts_of, record, run_in_parts, run_op
from rules.rule_cases import CASES, Case, all_cases

# Whose results are not a function of the operands.
UNDEFINED = frozenset({"empty.memory_format", "empty_like.default", "new_empty.default",
                       "new_empty_strided.default"})  # fmt: skip

EVERY_CASE = list(all_cases())


def close(mine: Tensor | None, whole: Tensor | None, message: str) -> None:
    assert (mine is None) == (whole is None), message
    if mine is not None and whole is not None:
        torch.testing.assert_close(
            mine, whole, rtol=1e-4, atol=1e-5, equal_nan=True, msg=lambda text: f"{message}: {text}"
        )


# Calls of users' modules, which tests/capture/test_opaque.py runs cut and uncut.
OPAQUE = frozenset({"mesh.opaque.default", "mesh.opaque_backward.default"})

# Indexing by positions counted from the start of a part: tests/rules/test_ragged_rules.py.
RAGGED = frozenset({"mesh.nonzero.default", "mesh.take.default", "mesh.put.default"})

# Ops that only a device can run: tests/rules/test_attention_cuda.py.
CUDA = frozenset(attention_cuda.TARGETS)


def test_every_rule_has_a_case() -> None:
    assert set(CASES) == set(targets()) - OPAQUE - RAGGED - CUDA


@pytest.mark.parametrize("target", targets())
def test_a_rule_names_an_op_of_pytorch(target: str) -> None:
    namespace, name, overload = target.split(".")
    assert overload in getattr(getattr(torch.ops, namespace), name).overloads()


@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_the_sizes_of_a_rule_are_those_of_the_tensors(case: Case) -> None:
    recorded = record(case)
    rule = recorded.rule
    for names, described in (
        (tuple(recorded.op.operands()), rule.operands),
        (recorded.op.results, rule.results),
    ):
        for name, dims in zip(names, described, strict=True):
            if name is None or dims is None:
                continue
            shape = recorded.values[name].shape
            assert len(dims) == len(shape)
            for factors, size in zip(dims, shape, strict=True):
                product = 1
                for factor in factors:
                    product *= rule.factors[factor].size
                assert not factors or product == size, (name, dims, shape)


@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_parts_combine_to_the_whole(case: Case) -> None:
    if f"aten.{case.target}" in RANDOM:
        pytest.skip("draws by position: tests/lower runs it cut")
    recorded = record(case)
    for cut in cuts_of(recorded.rule):
        for parts in (2, 3):
            if not allowed(recorded.rule, cut, parts):
                continue
            combined = run_in_parts(recorded, cut, parts)
            for mine, whole in zip(combined, recorded.whole, strict=True):
                if case.target not in UNDEFINED and whole is not None and mine is not None:
                    close(mine, whole, f"{cut} in {parts} parts")


@pytest.mark.parametrize(
    "case", [case for case in EVERY_CASE if record(case).rule.linear != "none"], ids=str
)
def test_a_linear_op_passes_terms_of_a_sum(case: Case) -> None:
    recorded = record(case)
    names = tuple(dict.fromkeys(recorded.op.operands()))
    assert recorded.rule.linear == "joint" or len(names) == 1
    terms = [{name: torch.randn_like(recorded.tensors[name]) for name in names} for _ in range(2)]
    rest = {name: recorded.tensors[name] - terms[0][name] - terms[1][name] for name in names}
    made = [run_op(recorded.op, recorded.values, term) for term in (*terms, rest)]
    for position, whole in enumerate(recorded.whole):
        close(sum(results[position] for results in made), whole, "sum of three terms")
