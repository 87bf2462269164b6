"""The cluster that a row was measured on, from what its cells and notes say of the hardware."""

from __future__ import annotations

import re
from functools import lru_cache
from math import gcd

from benchmarks.published.rows import Row
from benchmarks.published.settle import Settled, Unpredictable

from meshwright.cluster.levels import levels_of
from meshwright.cluster.profile_file import builtin_profile
from meshwright.cluster.types import Cluster, HostGroup, Profile
from meshwright.errors import ClusterError

# What a GPU's text has to hold, the first match counts; sizes of memory as the text has them.
_KINDS: tuple[tuple[str, str], ...] = (
    (r"V100.*16\s*GB", "v100-16g"),
    (r"V100", "v100-32g"),
    (r"A[18]00(?=.*PCI).*40\s*GB|A[18]00.*40\s*GB(?=.*PCI)", "a100-40g-pcie"),
    (r"A[18]00.*PCI", "a100-80g-pcie"),
    (r"A[18]00.*40\s*GB", "a100-40g"),
    (r"A[18]00(?!X)", "a100-80g"),
    (r"H100.*NVL", ""),  # not the PCIe card, and there is no profile
    (r"H[18]00.*PCI", "h100-pcie"),
    (r"H[18]00", "h100-sxm"),
    (r"\bH200", "h200"),
    (r"GB200", "gb200"),
    (r"GB300", "gb300"),
    (r"\bB200", "b200"),
    (r"\bB300", "b300"),
    (r"L40S", "l40s"),
    (r"\bTPU[- ]?v4\b", "tpu-v4"),
    (r"\bL4\b", "l4"),
    (r"4090", "rtx-4090"),
    (r"MI250X", "mi250x"),
    (r"MI300X", "mi300x"),
    (r"A10G", "a10g"),
    (r"A6000(?!.*ADA)", "a6000"),
)
_WATTS = re.compile(r"\b(\d{3,4})\s*W\b")
_MEMORY_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*TB/s")
_CARDS = re.compile(r"(\d+)\s*x\s*(\d+)\s*Gb")  # 4x100Gb
_HOST_RATE = re.compile(r"(\d+)\s*Gb(?:ps|/s)")  # of a whole host
_USUAL_DEVICES = 8
# Of A800 and H800, which are A100 and H100 with 400 GB/s of NVLink both ways together.
_EXPORT = re.compile(r"[AH]800", re.IGNORECASE)
_EXPORT_BYTES_PER_S = 2e11


def cluster_for(settled: Settled) -> Cluster:
    """Raises Unpredictable where there is no profile of the device.

    Equal clusters are one object, so that costs are remembered between rows.
    """
    row = settled.row
    devices = settled.gpus_per_node or _USUAL_DEVICES
    devices = gcd(settled.n_gpus, devices)
    return _cluster(
        kind_of(row.gpu), settled.n_gpus // devices, devices, _changes(row), _network(row)
    )


def kind_of(gpu: str) -> str:
    for pattern, kind in _KINDS:
        if re.search(pattern, gpu, re.IGNORECASE):
            if kind:
                return kind
            break
    raise Unpredictable(f"gpu {gpu or 'not stated'}: there is no profile of it")


def _changes(row: Row) -> tuple[tuple[str, float], ...]:
    """Where a card differs from the data sheet, in its own text: rate of its memory, power."""
    changes: dict[str, float] = {}
    if "HBM" in row.gpu and (found := _MEMORY_RATE.search(row.notes)):
        changes["memory_bytes_per_s"] = float(found[1]) * 1e12
    if found := _WATTS.search(row.gpu):
        changes["power_w"] = float(found[1])
    if _EXPORT.search(row.gpu):
        changes["host link"] = _EXPORT_BYTES_PER_S
    return tuple(sorted(changes.items()))


def _network(row: Row) -> tuple[int, float] | None:
    """Cards of a host and bytes per second of each, where the row says so.

    A host's rate without the number of cards is taken as one card a device.
    """
    text = f"{row.notes} {row.source}"
    if found := _CARDS.search(text):
        return int(found[1]), int(found[2]) * 1e9 / 8
    if found := _HOST_RATE.search(text):
        return 0, int(found[1]) * 1e9 / 8
    return None


@lru_cache(maxsize=64)
def _cluster(
    kind: str,
    hosts: int,
    devices: int,
    changes: tuple[tuple[str, float], ...],
    network: tuple[int, float] | None,
) -> Cluster:
    try:
        profile = builtin_profile(kind)
    except ClusterError:
        raise Unpredictable(f"gpu: there is no profile {kind}") from None
    changed = dict(changes)
    host_rate = changed.pop("host link", None)
    profile = profile.model_copy(update=changed)
    if host_rate is not None:
        profile = _with_link(profile, "host", {"bytes_per_s": host_rate})
    if network is not None:
        profile = _with_network(profile, devices, *network)
    group = HostGroup(
        hosts=hosts, devices=devices, profile=profile,
        levels=levels_of(profile.links, hosts, devices),
    )  # fmt: skip
    return Cluster(text=f"{hosts}x{devices}:{kind}", groups=(group,))


def _with_network(profile: Profile, devices: int, cards: int, bytes_per_s: float) -> Profile:
    if cards:
        changed = {"bytes_per_s": bytes_per_s, "shared_by": max(1, devices // cards)}
    else:
        changed = {"bytes_per_s": bytes_per_s / devices, "shared_by": 1}
    return _with_link(profile, "across", changed)


def _with_link(profile: Profile, name: str, changed: dict[str, float]) -> Profile:
    links = tuple(
        link.model_copy(update=changed) if link.name == name else link for link in profile.links
    )
    return profile.model_copy(update={"links": links})
