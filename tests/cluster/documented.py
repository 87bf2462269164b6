"""Rows of docs/reference/clusters-and-profiles.md, made from the built-in profiles.

`python tests/cluster/documented.py` prints both tables, to paste after a change.
"""

from __future__ import annotations

from meshwright.cluster.profile_file import builtin_kinds, builtin_profile
from meshwright.cluster.types import Profile

DEVICES = (
    "| Kind | Memory GiB | GB/s | fp32 | TF32 | 16-bit | fp8 | fp4 | Units | GHz | L2 MiB | W |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)
HOSTS = (
    "| Kind | A host | Links, GB/s a direction | Host memory GB | at GB/s | Disk GB | at GB/s |\n"
    "|---|---:|---|---:|---:|---:|---:|"
)


def device_row(profile: Profile) -> str:
    """Dense TFLOP/s by dtype."""
    peaks = profile.peak_flops_by_dtype
    rates = [f"{peaks[name] / 1e12:.6g}" if name in peaks else ""  # type: ignore[index]
             for name in ("float32", "tf32", profile.matmul_dtype, "float8", "float4")]  # fmt: skip
    assert profile.clock_hz
    assert profile.l2_bytes
    cells = (
        f"`{profile.name}`", f"{profile.memory_bytes / 2**30:.1f}",
        f"{profile.memory_bytes_per_s / 1e9:g}", *rates, str(profile.compute_units),
        f"{profile.clock_hz / 1e9:.2f}", f"{profile.l2_bytes / 2**20:g}", f"{profile.power_w:g}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def host_row(profile: Profile) -> str:
    """`50 / 2` is a link of 50 GB/s that two devices share."""
    links = []
    for link in profile.links:
        joined = f" ({link.devices})" if link.devices else ""
        shared = f" / {link.shared_by}" if link.shared_by > 1 else ""
        links.append(f"{link.name}{joined} {link.bytes_per_s / 1e9:g}{shared}")
    tiers = []
    for tier in profile.lower_tiers:
        shared = f" / {tier.shared_by}" if tier.shared_by > 1 else ""
        tiers += [f"{tier.bytes / 1e9:.5g}", f"{tier.read_bytes_per_s / 1e9:g}{shared}"]
    cells = (f"`{profile.name}`", str(profile.host_devices), ", ".join(links), *tiers)
    return f"| {' | '.join(cells)} |"


def tables() -> tuple[str, str]:
    profiles = [builtin_profile(kind) for kind in builtin_kinds()]
    return (
        "\n".join((DEVICES, *map(device_row, profiles))),
        "\n".join((HOSTS, *map(host_row, profiles))),
    )


if __name__ == "__main__":
    print("\n\n".join(tables()))
