"""Bandwidth to the memories beyond a device's own: the host's, and a disk's."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import torch

_DISK_BYTES = 32 << 20
_HOST_BYTES = 256 << 20


def measure_tiers(device: str) -> dict[str, tuple[int, float, float]]:
    """By tier: its bytes, and bytes read and written per second by this process.

    A disk is written through to the device; what is read comes from there where
    the system lets go of its copy. A tier that can't be measured is left out.
    """
    found = {}
    if device != "cpu":
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["host"] = (ram, *_host(device))
    disk = _disk(Path(tempfile.gettempdir()))
    if disk is not None:
        found["disk"] = disk
    return found


def _host(device: str) -> tuple[float, float]:
    there = torch.empty(_HOST_BYTES, dtype=torch.uint8, device=device)
    here = torch.empty(_HOST_BYTES, dtype=torch.uint8, pin_memory=True)

    def rate(target: torch.Tensor, source: torch.Tensor) -> float:
        target.copy_(source, non_blocking=True)
        torch.accelerator.synchronize()
        started = time.perf_counter()
        for _ in range(4):
            target.copy_(source, non_blocking=True)
        torch.accelerator.synchronize()
        return 4 * _HOST_BYTES / (time.perf_counter() - started)

    return rate(there, here), rate(here, there)


def _disk(folder: Path) -> tuple[int, float, float] | None:
    content = os.urandom(1 << 20)
    try:
        free = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            started = time.perf_counter()
            for _ in range(_DISK_BYTES >> 20):
                file.write(content)
            os.fsync(file.fileno())
            written_s = time.perf_counter() - started
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            started = time.perf_counter()
            while file.read(1 << 20):
                pass
            read_s = time.perf_counter() - started
    except OSError:
        return None
    return max(free, 1), _DISK_BYTES / max(read_s, 1e-9), _DISK_BYTES / max(written_s, 1e-9)
