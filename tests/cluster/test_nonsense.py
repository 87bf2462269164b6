"""Whatever is written, a cluster comes out of it or one error that says what is wrong."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.profile_file import (
    builtin_kinds,
    builtin_profile,
    check_writable,
    load_profile,
)
from meshwright.errors import ClusterError

What = TypeVar("What")
Got = TypeVar("Got")

KINDS = builtin_kinds()

FILES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = st.sampled_from(
    ["x", "X", ":", "+", "-", ".", ",", " ", "0", "1", "8", "16", "007", "9" * 30, "-3", "1e3",
     "2.5", "²", "٣", "local", "local:", "h100-sxm", "h100", "cpu", "a100-80g", ".json", "/",
     "\n", "\0", "x8:", "4x8:", "4x8:h100-sxm", "None"]
)  # fmt: skip


def tried(read: Callable[[What], Got], what: What) -> Got | ClusterError:
    try:
        return read(what)
    except ClusterError as error:
        return error


def sound(outcome: Got | ClusterError) -> Got | None:
    """What was read; None for an error, which says what is wrong and what to do."""
    if not isinstance(outcome, ClusterError):
        return outcome
    assert outcome.message
    assert outcome.remedy
    return None


@settings(deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=8).map("".join)))
@example("4x8:h100-sxm+")
@example("0x8:h100-sxm")
@example("8xfoo")
@example("1e3x8:h100-sxm")
@example("4x8")
@example("4x8:")
@example("4x8:../cpu")
@example("\0.json")
@example("1x1:\0.json")
def test_any_text(text: str) -> None:
    cluster = sound(tried(parse_cluster, text))
    if cluster is not None:
        assert 1 <= cluster.size <= 1 << 20
        assert cluster.text == text.strip()
        assert all(group.levels[-1].devices == group.size for group in cluster.groups)


GROUPS = st.tuples(st.integers(1, 300), st.integers(1, 80), st.sampled_from(KINDS))


@settings(deadline=None)
@given(st.lists(GROUPS, min_size=1, max_size=4), st.sampled_from(["+", " + ", "+ "]))
def test_every_cluster_that_makes_sense_is_read(
    groups: list[tuple[int, int, str]], plus: str
) -> None:
    cluster = parse_cluster(plus.join(f"{h}x{d}:{kind}" for h, d, kind in groups))
    assert cluster.size == sum(hosts * devices for hosts, devices, _ in groups)
    for group, (hosts, devices, kind) in zip(cluster.groups, groups, strict=True):
        assert (group.hosts, group.devices, group.profile.name) == (hosts, devices, kind)
        assert {"host", "across"} <= {level.name for level in group.levels}
        assert all(level.shared_by <= devices for level in group.levels)


@given(st.lists(GROUPS, min_size=1, max_size=3))
@FILES
def test_a_dumped_cluster_is_read_back(tmp_path: Path, groups: list[tuple[int, int, str]]) -> None:
    cluster = parse_cluster("+".join(f"{h}x{d}:{kind}" for h, d, kind in groups))
    path = tmp_path / "dumped.json"
    path.write_text(cluster.model_dump_json())
    assert parse_cluster(str(path)).groups == cluster.groups


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(data, dict | list):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in items:
            yield from leaves(value, (*path, key))
    else:
        yield path


def numbers(data: Any) -> list[tuple[Any, ...]]:
    return [path for path in leaves(data) if type(at(data, path)) in (int, float)]


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    data = copy.deepcopy(data)
    at(data, path[:-1])[path[-1]] = value
    return data


PUBLISHED = {kind: json.loads(builtin_profile(kind).model_dump_json()) for kind in (*KINDS, "cpu")}
JUNK = st.one_of(
    st.none(), st.text(max_size=5), st.booleans(), st.just([]), st.just({}), st.just(-1),
    st.just(math.nan), st.just(math.inf), st.just(-math.inf), st.just(10**400), st.just(1e308),
    st.floats(), st.integers(), st.lists(st.integers(), max_size=2),
)  # fmt: skip


@given(st.sampled_from(sorted(PUBLISHED)), JUNK, st.data())
@FILES
def test_any_field_may_hold_anything(
    tmp_path: Path, kind: str, junk: Any, data: st.DataObject
) -> None:
    """The profile is read, as figures that some device may have, or the field is named."""
    whole = PUBLISHED[kind]
    path = data.draw(st.sampled_from(list(leaves(whole))))
    file = tmp_path / "p.json"
    file.write_text(json.dumps(replaced(whole, path, junk)))
    outcome = tried(load_profile, file)
    profile = sound(outcome)
    if isinstance(outcome, ClusterError):
        assert str(file) in outcome.message
        assert str(path[0]) in outcome.message
    if profile is not None:
        dumped = profile.model_dump(mode="json")
        assert all(math.isfinite(at(dumped, number)) for number in numbers(dumped))


@given(st.sampled_from(sorted(PUBLISHED)), st.data())
@FILES
def test_a_missing_field_is_named(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    whole = copy.deepcopy(PUBLISHED[kind])
    needed = ["name", "device", "source", "memory_bytes", "peak_flops", "memory_bytes_per_s",
              "links.0.bytes_per_s", "links.0.name", "links.0.latency_s",
              "lower_tiers.0.bytes", "lower_tiers.0.read_bytes_per_s"]  # fmt: skip
    field = data.draw(st.sampled_from(needed))
    keys = [int(key) if key.isdigit() else key for key in field.split(".")]
    del at(whole, tuple(keys[:-1]))[keys[-1]]
    file = tmp_path / "p.json"
    file.write_text(json.dumps(whole))
    with pytest.raises(ClusterError) as caught:
        load_profile(file)
    assert caught.value.message == f"{file}: the field {field} is missing."


# What a data sheet states, as a multiple of the unit that the field is in.
UNITS = {
    "bytes_per_s": (1e-6, 1e-9, 1e-12), "memory_bytes": (1e-6, 1e-9), "bytes": (1e-9, 1e-12),
    "flops": (1e-9, 1e-12, 1e-15), "clock_hz": (1e-6, 1e-9), "l2_bytes": (1e-6,),
    "latency_s": (1e6, 1e9), "op_overhead_s": (1e6, 1e9), "exponentials_per_s": (1e-9, 1e-12),
}  # fmt: skip


@given(st.sampled_from(KINDS), st.data())
@FILES
def test_a_figure_in_a_data_sheets_unit_is_refused(
    tmp_path: Path, kind: str, data: st.DataObject
) -> None:
    whole = PUBLISHED[kind]
    path = data.draw(st.sampled_from(numbers(whole)))
    name = "flops" if path[0] == "peak_flops_by_dtype" else str(path[-1])
    factors = next((UNITS[end] for end in UNITS if name.endswith(end)), ())
    old = at(whole, path)
    assume(factors and old)
    factor = data.draw(st.sampled_from(factors))
    new = old * factor
    new = max(1, int(new)) if isinstance(old, int) and name.endswith("bytes") else new
    file = tmp_path / "p.json"
    file.write_text(json.dumps(replaced(whole, path, new)))
    with pytest.raises(ClusterError) as caught:
        load_profile(file)
    field = ".".join(str(key) for key in path)
    assert f"the field {field} is " in caught.value.message
    assert "Give it in " in caught.value.remedy or "same value" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "said", "remedy"),
    [
        ({"memory_bytes_per_s": 3350}, "bytes_per_s is 3350; expected", "GB/s, write 3.35e+12"),
        ({"memory_bytes": 80}, "memory_bytes is 80; expected", "in GB, write 8e+10"),
        ({"peak_flops": 989}, "peak_flops is 989; expected", "in TFLOP/s, write 9.89e+14"),
        ({"op_overhead_s": 5}, "op_overhead_s is 5; expected", "microseconds, write 5e-06"),
        ({"clock_hz": 1830}, "clock_hz is 1830; expected", "in MHz, write 1.83e+09"),
        ({"peak_flops": 1e12}, "both are the rate at matmul_dtype", "same value"),
        ({"peak_flops_by_dtype": {}}, "peak_flops_by_dtype", "fit together"),
        ({"peak_flops_by_dtype": {"bf16": 1e12}}, "peak_flops_by_dtype.bf16", "Correct"),
        ({"matmul": [{"x": 1e12, "seconds": 1.5}]}, "matmul comes to 6.67e+11 FLOP/s", "seconds"),
        ({"matmul": [{"x": 1e12, "seconds": 1e9}]}, "matmul.0.seconds is 1e+09", "in s"),
        ({"power_w": -700}, "power_w is wrong: got -700; it should be greater than 0", "watts"),
        ({"power_w": True}, "power_w is wrong: got True; it should be a number", "watts"),
        ({"peak_flops": "9.894e14"}, "got '9.894e14'; it should be a number, not text", "FLOP/s"),
        ({"memory_bytes": "80"}, "memory_bytes is wrong: got '80'; it should be a n", "in bytes"),
        ({"collectives": [{"kind": "all_redcue", "participants": 2, "points": []}]},
         "collectives.0.kind is wrong: got 'all_redcue'; it should be 'all_gather'", ""),
        ({"device": "gpu"}, "device is wrong: got 'gpu'; it should be 'cpu', 'cuda' or 'xla'", ""),
        ({"compute_units": None}, "compute_units is needed beside the peaks", "fit together"),
        ({"links": [{"name": "rack", "bytes_per_s": 1e11, "latency_s": 1e-6}]},
         "links.0: devices is needed: how many of them one rack joins", "fit together"),
    ],
)  # fmt: skip
def test_what_is_said(tmp_path: Path, change: dict[str, Any], said: str, remedy: str) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(PUBLISHED["h100-sxm"] | change))
    with pytest.raises(ClusterError) as caught:
        load_profile(file)
    assert said in caught.value.message
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("shape", "links", "said"),
    [
        ("2x8", [], "nothing that joins 2 hosts of 8 devices"),
        ("1x8", [], "nothing that joins 1 host of 8 devices"),
        ("2x8", [{"name": "host", "bytes_per_s": 1e11, "latency_s": 1e-6}], "joins 2 hosts of 8"),
        ("1x1", [], None),
        ("1x8", [{"name": "host", "bytes_per_s": 1e11, "latency_s": 1e-6}], None),
    ],
)
def test_links_join_all_devices(
    tmp_path: Path, shape: str, links: list[dict[str, Any]], said: str | None
) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(PUBLISHED["h100-sxm"] | {"links": links}))
    outcome = tried(parse_cluster, f"{shape}:{file}")
    assert isinstance(outcome, ClusterError) == (said is not None)
    if isinstance(outcome, ClusterError):
        assert said
        assert said in outcome.message
        assert f"{shape}:{file}: the field links" in outcome.message


def test_where_no_profile_can_be_written_is_known_beforehand(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json")
    (tmp_path / "old.json").write_text("{}")
    check_writable(tmp_path / "old.json")
    for path, said in (
        (tmp_path, "it is a folder"),
        (tmp_path / "none" / "p.json", "there is no folder"),
        (tmp_path / "old.json" / "p.json", "there is no folder"),
    ):
        with pytest.raises(ClusterError, match=said) as caught:
            check_writable(path)
        assert str(path) in caught.value.message


@given(st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["groups", "hosts", "devices", "profile", "levels", "name", "between",
                             "bytes_per_s", "latency_s", "cards", "shared_by", "text"]),
            inner, max_size=5,
        ),
        st.fixed_dictionaries({"groups": st.lists(inner, max_size=2)}),
        st.fixed_dictionaries({"hosts": st.just(2), "devices": st.just(4),
                               "profile": st.just("l4"), "levels": inner}),
    ),
    max_leaves=12,
))  # fmt: skip
@FILES
def test_any_cluster_file(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(content))
    cluster = sound(tried(parse_cluster, str(file)))
    assert cluster is None or cluster.size >= 1
