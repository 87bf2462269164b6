"""From measurements to a profile: known constants come back, noise is carried."""

from __future__ import annotations

import pytest

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.profile_file import load_profile, save_profile
from meshwright.cluster.types import Fitted
from meshwright.cost.communication import collective_seconds
from meshwright.cost.compute import op_seconds
from meshwright.cost.fit import Fit, fit_profile, median_error, rising, worst
from meshwright.cost.fitted import constants_of, dot, fitted_seconds, opaque_seconds
from meshwright.cost.interval import step_interval
from meshwright.cost.measured import Measured, Timed
from meshwright.cost.nonnegative import relative_fit
from meshwright.cost.terms import Work, terms
from meshwright.errors import ClusterError, UsageError
from meshwright.program.types import Op, Ref, Value

CACHE = float(1 << 20)
MATMUL = (2e-5, 0.0, 2e-11, 3e-10, 0.0, 4e-10)
STREAMS = {"add": (1e-5, 5e-11, 8e-11), "gelu": (3e-5, 2e-10, 0.0), "sum": (2e-5, 1e-10, 3e-11)}
ADAM = (8e-5, 1e-9, 4e-10)
SIZES = (1e3, 1e5, 9e5, 2e6, 6e6, 3e7)
PRODUCTS = [
    (1.0, float(m * k * n), float(m * k), float(k * n), float(m * n))
    for m, k, n in (
        (8, 8, 8),
        (64, 512, 32),
        (512, 64, 512),
        (4, 1024, 64),
        (256, 256, 16),
        (1024, 128, 512),
        (32, 32, 1024),
    )
] + [(16.0, 16e4, 16e3, 16e3, 16e2)]  # in batches, which tells products from calls


def measured(passes: tuple[float, ...] = (1.0, 1.0, 1.0), contention: float = 2.0) -> Measured:
    """What a machine of these constants measures, its speed times each of `passes`."""
    works = [Work("matmul", "matmul", amounts, "float32") for amounts in PRODUCTS]
    families = {"add": "pointwise", "gelu": "transcendental", "sum": "reduction"}
    works += [Work(name, families[name], (size,), "float32") for name in STREAMS for size in SIZES]
    works.append(Work("view", "view", (), ""))
    constants = {"matmul": MATMUL, **STREAMS, "view": (4e-6,)}
    ops = [
        Timed(
            name=work.key, key=work.key, family=work.family, amounts=work.amounts,
            dtype=work.dtype,
            seconds=[slow * dot(constants[work.key], terms(work, CACHE)) for slow in passes],
        )
        for work in works
    ]  # fmt: skip
    return Measured(
        ops=ops,
        dtypes={"float32": [1e-3 * s for s in passes], "bfloat16": [3e-3 * s for s in passes]},
        optimizers={
            "adamw": {
                size: [s * dot(ADAM, (1.0, size, max(size - CACHE, 0.0))) for s in passes]
                for size in (1e3, 5e5, 4e6, 1e7)
            }
        },
        contention=[contention] * len(passes),
        collectives={
            f"{kind}:2": {1024.0: [1e-3 * s for s in passes], 4096.0: [2e-3 * s for s in passes]}
            for kind in ("all_reduce", "ring_shift")
        },
        steps=[(3e-4 * s, 4e-5 * s) for s in passes],
        tiers={"disk": (10**9, 2e8, 1e8)},
    )  # fmt: skip


def fit(*results: Measured) -> Fit:
    passed = [Measured.model_validate_json(item.model_dump_json()) for item in results]
    return fit_profile(passed, name="mine", source="here", memory_bytes=10**9)


def fitted(found: Fit) -> Fitted:
    assert found.profile.fitted is not None
    return found.profile.fitted


def test_known_constants_come_back() -> None:
    found = fit(measured(), measured())
    constants = fitted(found)
    assert constants.cache_bytes == CACHE
    assert constants.contention == pytest.approx(2.0)
    assert constants.ops["matmul"] == pytest.approx(MATMUL, rel=1e-4, abs=1e-14)
    for name, expected in STREAMS.items():
        assert constants.ops[name] == pytest.approx(expected, rel=1e-4, abs=1e-14)
    assert constants.ops["view"] == pytest.approx((4e-6,))
    assert constants.optimizers["adamw"] == pytest.approx(ADAM, rel=1e-4)
    assert constants.dtype_time == {
        "bfloat16": pytest.approx(3.0),
    }
    assert (constants.step_s, constants.microbatch_s) == pytest.approx((3e-4, 4e-5))
    assert median_error(found.residuals) < 1e-6
    assert abs(worst(found.residuals)[0].error) < 1e-4
    assert found.profile.processes == 2
    assert found.profile.lower_tiers[0].write_bytes_per_s == 1e8


def test_an_op_costs_what_was_measured() -> None:
    profile = fit(measured()).profile
    values = {n: Value(n, (512, 64), "float32", n) for n in ("x", "y", "z")}
    add = Op("a", "aten.add.Tensor", (Ref("x"), Ref("y")), (), ("z",), False, "forward")
    nbytes = 3 * 512 * 64 * 4
    expected = 2.0 * dot(STREAMS["add"], terms(Work("add", "pointwise", (nbytes,), ""), CACHE))
    assert op_seconds(add, values, profile) == pytest.approx(expected, rel=1e-3)
    # An op that was not probed costs what its family does.
    sub = Op("a", "aten.sub.Tensor", (Ref("x"), Ref("y")), (), ("z",), False, "forward")
    assert op_seconds(sub, values, profile) == pytest.approx(expected, rel=1e-3)
    half = {n: Value(n, (256, 256), "bfloat16", n) for n in ("x", "y", "z")}
    full = {n: Value(n, (256, 256), "float32", n) for n in ("x", "y", "z")}
    mm = Op("a", "aten.mm.default", (Ref("x"), Ref("y")), (), ("z",), False, "forward")
    assert 2 < op_seconds(mm, half, profile) / op_seconds(mm, full, profile) < 3


def test_noise_is_carried_into_every_prediction() -> None:
    quiet, noisy = fit(measured()), fit(measured((0.9, 1.0, 1.2)))
    assert set(fitted(quiet).noise.values()) == {0.0}
    assert fitted(noisy).noise == pytest.approx(
        {"compute": 0.3, "optimizer": 0.3, "collectives": 0.3}
    )
    times = {"compute_s": 0.7, "collectives_s": 0.2, "optimizer_s": 0.1}
    within = step_interval(parse_cluster("local:2", noisy.profile), 1.0, **times)
    assert within == pytest.approx((0.85, 1.15))
    sure = step_interval(parse_cluster("local:2", quiet.profile), 1.0, **times)
    assert sure == pytest.approx((1.0, 1.0))
    assert step_interval(parse_cluster("local:2"), 1.0, **times) is None


def test_more_processes_than_measured_share_the_cores() -> None:
    profile = fit(measured(), measured()).profile
    twice = parse_cluster("local:4", profile).groups[0].profile
    assert twice.fitted is not None
    assert twice.fitted.contention == pytest.approx(4.0)


def test_collectives_keep_their_curve() -> None:
    profile = fit(measured(), measured()).profile
    cluster = parse_cluster("local:2", profile)
    assert collective_seconds("all_reduce", 2, 1, 4096, cluster) == pytest.approx(2e-3)


def test_a_profile_is_read_as_it_was_written(tmp_path: object) -> None:
    profile = fit(measured()).profile
    path = f"{tmp_path}/profile.json"
    save_profile(profile, path)
    assert load_profile(path) == profile


def test_nothing_measured_and_nothing_known() -> None:
    with pytest.raises(UsageError):
        fit(Measured())
    bare = Fitted(ops={"matmul": MATMUL}, cache_bytes=CACHE)
    with pytest.raises(ClusterError):
        constants_of(Work("conv", "convolution", (1.0,) * 6, "float32"), bare)


def test_constants_that_are_too_few_are_named() -> None:
    """A file's field that was cut short by hand is no reason for a product to cost nothing."""
    bare = Fitted(ops={"matmul": MATMUL[:2], "pointwise": (1e-6, 1e-9, 0.0)}, cache_bytes=CACHE)
    with pytest.raises(ClusterError, match=r"fitted\.ops\.matmul has 2 constants; 6 are needed"):
        fitted_seconds(Work("matmul", "matmul", (1.0,) * 5, "float32"), bare)
    with pytest.raises(ClusterError, match=r"fitted\.ops\.matmul has 2 constants"):
        opaque_seconds(1e6, 1e3, 1, bare)


def test_constants_are_never_negative() -> None:
    x = relative_fit([(1.0, 1.0), (1.0, 2.0), (1.0, 4.0)], [3.0, 2.0, 1.0])
    assert min(x) >= 0.0
    assert relative_fit([(1.0, 2.0), (1.0, 4.0)], [5.0, 9.0]) == pytest.approx((1.0, 2.0))


def test_rising_pools_what_falls() -> None:
    seconds = [point.seconds for point in rising({4: 4.0, 1: 1.0, 2: 4.0, 3: 1.0})]
    assert seconds == pytest.approx([1.0, 2.0, 2.0, 4.0])
    assert [point.x for point in rising({3: 1.0, 1: 1.0})] == [1, 3]
