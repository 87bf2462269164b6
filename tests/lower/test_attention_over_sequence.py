"""Attention whose sequence is cut, by gathered keys and round a ring; balance of stripes."""

from __future__ import annotations

import pytest
import torch

from lower.one_op import run_cut
from meshwright.cluster.mesh import Mesh
from meshwright.lower.choose import allowed
from meshwright.rules import FactorCut
from meshwright.runtime import local_attention
from meshwright.runtime.local_attention import positions
from rules.brute_force import Recorded, cuts_of, record
from rules.cases_attention import ATTENTION, Attention, backward, forward

SQUARE = [given for given in ATTENTION if given.keys is None]


def sequence_cuts(recorded: Recorded) -> list[FactorCut]:
    """Every way to cut the sequence: contiguous parts, stripes, and what lies between."""
    return list(cuts_of(recorded.rule, special=True))


def assert_as_whole(
    recorded: Recorded, mesh: Mesh, cuts: dict[str, FactorCut], ring: frozenset[str]
) -> None:
    made = run_cut(recorded, mesh, cuts, ring)
    for mine, whole in zip(made, recorded.whole, strict=True):
        torch.testing.assert_close(
            mine, whole, rtol=1e-4, atol=1e-5, msg=lambda text: f"{cuts}: {text}"
        )


@pytest.mark.parametrize("given", SQUARE, ids=lambda given: given.note)
@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("case", [forward, backward])
def test_keys_and_values_go_round_a_ring(case, given: Attention, parts: int) -> None:
    recorded = record(case(given))
    mesh = Mesh((("x", parts),))
    assert sequence_cuts(recorded)
    for cut in sequence_cuts(recorded):
        assert allowed(recorded.rule, cut, parts)
        assert_as_whole(recorded, mesh, {"x": cut}, frozenset({"x"}))


@pytest.mark.parametrize("case", [forward, backward])
def test_a_ring_beside_cut_heads(case) -> None:
    """Two of three heads on one device, one on the other."""
    recorded = record(case(ATTENTION[0]))
    heads = next(
        cut for cut in cuts_of(recorded.rule) if recorded.rule.factors[cut.factor].size == 3
    )
    mesh = Mesh((("x", 2), ("y", 2)))
    for cut in sequence_cuts(recorded):
        assert_as_whole(recorded, mesh, {"x": cut, "y": heads}, frozenset({"x"}))


def kernels(monkeypatch: pytest.MonkeyPatch, cut: tuple[int, int], index: int, parts: int) -> int:
    """Scores that the forward of one device computes, out of 8 x 8: causal squares count half."""
    scores = 0
    flash = local_attention._flash

    def counted(query, key, value, dropout, is_causal, **options):
        nonlocal scores
        rows, columns = query.shape[2], key.shape[2]
        scores += rows * (rows + 1) // 2 if is_causal else rows * columns
        return flash(query, key, value, dropout, is_causal, **options)

    monkeypatch.setattr(local_attention, "_flash", counted)
    cuts = ((*cut, parts, index),)
    query, key, value = (torch.randn(1, 1, 8, 4) for _ in range(3))
    local_attention.attention(
        query[:, :, positions(8, cuts)], key, value, size=8, cuts=cuts, scale=None
    )
    monkeypatch.undo()
    return scores


def test_stripes_give_all_devices_about_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 36 scores below the diagonal: stripes of 2 x 2 blocks compute 6 to 12, and none beyond."""
    striped = [kernels(monkeypatch, (2, 4), index, 4) for index in range(4)]
    contiguous = [kernels(monkeypatch, (1, 8), index, 4) for index in range(4)]
    assert sum(striped) == sum(contiguous) == 36
    assert striped == [6, 8, 10, 12]
    assert contiguous == [3, 7, 11, 15]


def test_positions_of_nested_cuts() -> None:
    held = [positions(12, ((3, 4, 2, a), (3, 4, 2, b))).tolist() for a in (0, 1) for b in (0, 1)]
    assert held == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
