"""Cluster texts and files, and what is said about those that make no sense."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from meshwright.cluster.parse import parse_cluster
from meshwright.cluster.profile_file import builtin_profile, load_profile, save_profile
from meshwright.errors import ClusterError


def test_local_shares_this_machines_memory() -> None:
    cluster = parse_cluster("local:4")
    ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert cluster.size == 4
    assert cluster.memory_bytes == ram // 4
    assert not cluster.calibrated
    assert "uncalibrated" in cluster.groups[0].profile.name


def test_local_uses_the_calibrated_profile() -> None:
    measured = builtin_profile("cpu").model_copy(
        update={"name": "mine", "calibrated": True, "processes": 2}
    )
    two, four = (parse_cluster(f"local:{count}", measured) for count in (2, 4))
    assert two.calibrated
    assert two.groups[0].profile.name == "mine"
    # Twice the processes on the same cores: each is half as fast.
    assert four.groups[0].profile.matmul[-1].seconds == 2 * measured.matmul[-1].seconds
    assert "rescaled" in four.groups[0].profile.name


def test_hosts_and_groups() -> None:
    cluster = parse_cluster("4x8:h100-sxm+8x8:a100-40g")
    assert cluster.size == 96
    assert [group.hosts for group in cluster.groups] == [4, 8]
    assert 39 * 2**30 < cluster.memory_bytes < 40 * 2**30
    assert cluster.peak_flops == pytest.approx(32 * 989.4e12 + 64 * 312e12)
    h100 = cluster.groups[0]
    assert [level.name for level in h100.levels] == ["host", "across"]
    assert [level.devices for level in h100.levels] == [8, 32]
    assert h100.levels[0].bytes_per_s > h100.levels[1].bytes_per_s


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("local", "nothing"),
        ("local:", "nothing"),
        ("local:0", "'0'"),
        ("local:x", "'x'"),
        ("local:-1", "'-1'"),
        ("local:2.5", "'2.5'"),
        ("8:h100", "HOSTSxDEVICES:KIND"),
        ("8", "HOSTSxDEVICES:KIND"),
        ("2x8", "HOSTSxDEVICES:KIND"),
        ("2x8:", "HOSTSxDEVICES:KIND"),
        ("2x8x2:h200", "HOSTSxDEVICES:KIND"),
        ("0x8:h200", "hosts"),
        ("2x-1:h200", "devices per host"),
        ("x8:h200", "nothing"),
        ("٣x8:h200", "hosts"),
        ("2x8:h200+", "+ with no group"),
        ("+2x8:h200", "+ with no group"),
        ("2x8:h200++2x8:h200", "+ with no group"),
        ("2x8:h200+2x8", "HOSTSxDEVICES:KIND"),
        ("0x8:h200+2x8:h200", "hosts"),
        ("99999999x8:h200", "beyond 1048576"),
        ("2x9999:h200", "beyond 4096"),
        ("1000000x4096:h200", "4096000000 devices"),
        ("9" * 5000 + "x8:h200", "beyond 1048576"),
        ("local:9999999", "beyond 1048576"),
        ("2x8:nowhere.json", "nowhere.json"),
        ("nowhere.json", "nowhere.json"),
    ],
)
def test_nonsense(text: str, said: str) -> None:
    with pytest.raises(ClusterError) as caught:
        parse_cluster(text)
    assert said in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "close"),
    [
        ("h100sxm", "h100-sxm"),
        ("h100", "h100-96g-500w or h100-pcie or h100-sxm"),
        ("A100-40", "a100-40g or a100-40g-pcie"),
        ("h101", "h100-96g-500w or h100-pcie or h100-sxm"),
        ("mi300", "mi300x"),
    ],
)
def test_unknown_kind_lists_the_known_and_the_closest(kind: str, close: str) -> None:
    with pytest.raises(ClusterError) as caught:
        parse_cluster(f"2x8:{kind}")
    assert kind in caught.value.message
    assert f"Did you mean {close}?" in caught.value.remedy
    assert "b200" in caught.value.remedy


class TestFile:
    def write(self, folder: Path, content: object) -> str:
        path = folder / "cluster.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    def test_kinds_files_and_whole_profiles(self, tmp_path: Path) -> None:
        own = builtin_profile("h200").model_copy(update={"name": "mine"})
        save_profile(own, tmp_path / "mine.json")
        groups = [
            {
                "hosts": 1,
                "devices": 8,
                "profile": "h100-sxm",
                "levels": [{"name": "across", "bytes_per_s": 1e9}],
            },
            {"hosts": 2, "devices": 4, "profile": "mine.json"},
            {"hosts": 1, "devices": 2, "profile": own.model_dump()},
        ]
        path = self.write(tmp_path, {"groups": groups})
        cluster = parse_cluster(path)
        assert cluster.text == path
        assert cluster.size == 18
        assert cluster.groups[0].levels[-1].bytes_per_s == 1e9
        assert cluster.groups[1].profile == cluster.groups[2].profile == own

    def test_a_dumped_cluster_is_read_back(self, tmp_path: Path) -> None:
        cluster = parse_cluster("2x8:a100-80g")
        path = self.write(tmp_path, cluster.model_dump_json())
        assert parse_cluster(path).groups == cluster.groups

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("{", "not valid JSON"),
            ("[]", "JSON object"),
            ({}, "groups"),
            ({"groups": []}, "groups"),
            ({"groups": 3}, "groups"),
            ({"groups": [3]}, "groups.0"),
            ({"groups": [{"hosts": 1, "device": 2, "profile": "h200"}]}, "groups.0.device"),
            ({"groups": [{"hosts": 0, "devices": 2, "profile": "h200"}]}, "groups.0.hosts"),
            ({"groups": [{"hosts": 1, "devices": "a", "profile": "h200"}]}, "groups.0.devices"),
            ({"groups": [{"hosts": 1, "devices": 2}]}, "groups.0.profile"),
            ({"groups": [{"hosts": 1, "devices": 2, "profile": {"name": 1}}]}, "profile."),
            ({"groups": [{"hosts": 1, "devices": 2, "profile": "h300"}]}, "h300"),
            ({"matmul": []}, "not a cluster"),
        ],
    )
    def test_wrong_files_name_the_field(self, tmp_path: Path, content: object, said: str) -> None:
        with pytest.raises(ClusterError) as caught:
            parse_cluster(self.write(tmp_path, content))
        assert said in caught.value.message
        assert caught.value.remedy


class TestProfileFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        profile = builtin_profile("b200")
        save_profile(profile, tmp_path / "p.json")
        assert load_profile(tmp_path / "p.json") == profile

    def test_unwritable(self, tmp_path: Path) -> None:
        with pytest.raises(ClusterError):
            save_profile(builtin_profile("cpu"), tmp_path / "none" / "p.json")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"memory_bytes": -1}, "memory_bytes"),
            ({"peak_flops": "fast"}, "peak_flops"),
            ({"matmul": []}, "matmul"),
            ({"matmul": [{"x": 2, "seconds": 1}, {"x": 1, "seconds": 1}]}, "ascending"),
            ({"matmul": [{"x": 2, "second": 1}]}, "matmul.0"),
            ({"dtype_rate": {"float64": 0}}, "dtype_rate.float64"),
            ({"memory_byte": 3}, "memory_byte "),
        ],
    )
    def test_wrong_fields_are_named(
        self, tmp_path: Path, change: dict[str, object], said: str
    ) -> None:
        path = tmp_path / "p.json"
        path.write_text(json.dumps(builtin_profile("cpu").model_dump() | change))
        with pytest.raises(ClusterError) as caught:
            load_profile(path)
        assert said in caught.value.message

    def test_damaged(self, tmp_path: Path) -> None:
        path = tmp_path / "p.json"
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(ClusterError):
            load_profile(path)
        path.write_text('{"name": ')
        with pytest.raises(ClusterError, match="not valid JSON"):
            load_profile(path)

    def test_measured_times_need_the_launch_too(self, tmp_path: Path) -> None:
        """A launch that costs nothing by default would hide a field that was left out."""
        fields = builtin_profile("cpu").model_dump()
        del fields["op_overhead_s"]
        path = tmp_path / "p.json"
        path.write_text(json.dumps(fields))
        with pytest.raises(ClusterError, match="op_overhead_s is needed too"):
            load_profile(path)
