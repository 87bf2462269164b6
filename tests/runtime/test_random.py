"""Any sharding draws the same values, and they are distributed as they should be."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from meshwright.cluster.mesh import Mesh
from meshwright.layout.cuts import local_cut
from meshwright.layout.types import Layout, Split, cuts, local_shape
from meshwright.runtime import primitives, random
from meshwright.runtime.primitives import Cut

MESH = Mesh((("data", 2), ("tensor", 3)))
KEY = (7, 3, 0, 0)

LAYOUTS = [
    ((48,), Layout((("data", Split(0, 1, 48)),))),
    ((7, 5), Layout((("tensor", Split(0, 1, 7)),))),
    ((5, 7), Layout((("tensor", Split(1, 1, 7)),))),
    ((4, 6, 10), Layout((("data", Split(0, 1, 4)), ("tensor", Split(1, 1, 6))))),
    ((4, 6, 10), Layout((("data", Split(2, 1, 10)), ("tensor", Split(0, 1, 4))))),
    ((3, 24), Layout((("tensor", Split(1, 3, 8)),))),
    ((3, 24), Layout((("tensor", Split(1, 3, 4)),))),
    ((3, 26), Layout((("data", Split(1, 2, 13)), ("tensor", Split(1, 2, 13))))),
    ((11, 3), Layout((("tensor", Split(0, 1, 11)), ("data", Split(0, 1, 11))))),
    ((2, 24), Layout((("data", Split(1, 1, 2)), ("tensor", Split(1, 2, 6))))),  # one in the other
    ((2, 24), Layout((("tensor", Split(1, 4, 3)), ("data", Split(1, 1, 4))))),
    ((20, 4), Layout((("data", Split(0, 1, 5)), ("tensor", Split(0, 5, 4))))),  # first dim, uneven
    ((2, 9), Layout((("tensor", Split(0, 1, 2)),))),
    ((300, 4000), Layout((("data", Split(1, 1, 4000)),))),
    ((3, 2001, 11), Layout((("tensor", Split(1, 1, 2001)),))),
    ((), Layout()),
    ((0, 3), Layout()),
]


def part(x: Tensor, layout: Layout, rank: int) -> Tensor:
    shape, coordinate = tuple(x.shape), MESH.coordinate(rank)
    before = Layout()
    for axis, split in layout.shards:
        cut = local_cut(shape, before, axis, split, MESH, coordinate)
        extent = MESH.extent(axis)
        index = split.number(coordinate[axis], extent)
        x = primitives.shard(x, Cut(cut.dim, cut.outer, cut.extent, cut.minor), index, extent)
        before = before.with_shard(axis, split)
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "layout"), LAYOUTS)
def test_sharded_draws_are_slices_of_the_whole(
    shape: tuple[int, ...], layout: Layout, dtype: torch.dtype
) -> None:
    whole = random.uniform(shape, (), KEY, dtype)
    normal = random.normal(shape, (), KEY, dtype)
    assert whole.shape == shape
    assert whole.dtype is dtype
    for rank in range(MESH.size):
        mine = cuts(shape, layout, MESH, MESH.coordinate(rank))
        local = random.uniform(shape, mine, KEY, dtype)
        assert tuple(local.shape) == local_shape(shape, layout, MESH, MESH.coordinate(rank))
        assert torch.equal(local, part(whole, layout, rank))
        assert torch.equal(random.normal(shape, mine, KEY, dtype), part(normal, layout, rank))


def test_every_way_to_cover_a_part_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, layout = (6, 5, 24), Layout((("tensor", Split(2, 3, 8)), ("data", Split(0, 1, 6))))
    whole = random.uniform(shape, (), KEY)
    for jump_s, rank in itertools.product([0.0, 1e-8, 1e-6, 1.0], range(MESH.size)):
        monkeypatch.setattr(random, "_JUMP_S", jump_s)
        random._cover.cache_clear()
        local = random.uniform(shape, cuts(shape, layout, MESH, MESH.coordinate(rank)), KEY)
        assert torch.equal(local, part(whole, layout, rank))
    random._cover.cache_clear()


def test_keys_name_independent_draws() -> None:
    draws = torch.stack(
        [random.uniform((20000,), (), (seed, op)) for seed in (0, 1) for op in (0, 1)]
    )
    assert torch.equal(draws[1], random.uniform((20000,), (), (0, 1)))
    off_diagonal = torch.corrcoef(draws) - torch.eye(4)
    assert off_diagonal.abs().max() < 0.03
    # (1, 23) and (12, 3) are different keys
    assert not torch.equal(random.uniform((4,), (), (1, 23)), random.uniform((4,), (), (12, 3)))


def ks_distance(a: Tensor, b: Tensor) -> float:
    """Largest distance between two empirical distribution functions."""
    points = torch.cat((a, b)).sort().values
    below = [torch.searchsorted(x.sort().values, points, right=True) / x.numel() for x in (a, b)]
    return float((below[0] - below[1]).abs().max())


def test_uniform_distribution() -> None:
    n = 200_000
    x = random.uniform((n,), (), KEY)
    assert float(x.min()) >= 0
    assert float(x.max()) < 1
    assert abs(float(x.mean()) - 0.5) < 4 * (1 / 12 / n) ** 0.5
    assert abs(float(x.var()) - 1 / 12) < 1e-3
    theirs = torch.rand(n, generator=torch.Generator().manual_seed(0))
    assert ks_distance(x, theirs) < 1.95 * (2 / n) ** 0.5  # the 0.1 % level
    assert abs(float(torch.corrcoef(torch.stack((x[1:], x[:-1])))[0, 1])) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_uniform_stays_below_one(dtype: torch.dtype) -> None:
    x = random.uniform((100_000,), (), KEY, dtype)
    assert float(x.max()) < 1
    assert abs(float(x.float().mean()) - 0.5) < 0.005


def test_normal_distribution() -> None:
    n = 200_000
    x = random.normal((n,), (), KEY)
    assert x.dtype is torch.float32
    assert abs(float(x.mean())) < 4 / n**0.5
    assert abs(float(x.var()) - 1) < 0.015
    theirs = torch.randn(n, generator=torch.Generator().manual_seed(0))
    assert ks_distance(x, theirs) < 1.95 * (2 / n) ** 0.5
    assert abs(float((x**4).mean()) - 3) < 0.1


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_follows_native_dropout(p: float, dtype: torch.dtype) -> None:
    x = torch.linspace(1, 2, 40_000).view(40, 1000).to(dtype)
    y, mask = random.dropout(x, p, (40, 1000), (), KEY)
    theirs, their_mask = torch.native_dropout(x, p, True)
    assert mask.dtype is their_mask.dtype
    assert y.dtype is theirs.dtype
    assert abs(float(mask.float().mean()) - (1 - p)) < 0.01
    scale = 1 / (1 - p) if p < 1 else 0.0
    torch.testing.assert_close(y, x * mask * scale)
    both = mask & their_mask
    torch.testing.assert_close(y[both], theirs[both])


def test_sharded_dropout() -> None:
    shape, layout = (6, 10), Layout((("tensor", Split(1, 1, 10)),))
    x = random.normal(shape, (), (1,))
    y, mask = random.dropout(x, 0.3, shape, (), KEY)
    for rank in range(MESH.size):
        mine = cuts(shape, layout, MESH, MESH.coordinate(rank))
        local, local_mask = random.dropout(part(x, layout, rank), 0.3, shape, mine, KEY)
        assert torch.equal(local, part(y, layout, rank))
        assert torch.equal(local_mask, part(mask, layout, rank))
