"""Worker for the tests of checkpoints over several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from test_store import SHAPES, whole

from meshwright.checkpoint.store import Stored, load, save
from meshwright.cluster.mesh import Mesh
from meshwright.runtime.primitives import Cut, shard
from meshwright.runtime.worker import init_process


def run(payload: dict[str, Any]) -> None:
    """Save, or load into zeros and check and save again, each tensor cut on dim 0."""
    process = init_process(timeout_s=60)
    mesh = Mesh(tuple((name, extent) for name, extent in payload["axes"]))
    coordinate = mesh.coordinate(process.rank)
    tensors, expected = {}, {}
    for key, shape in SHAPES.items():
        local, cuts = whole(key), []
        for axis, dim in payload["cuts"] if shape else []:
            cut = Cut(dim, 1, local.shape[dim], 1)
            local = shard(local, cut, coordinate[axis], mesh.extent(axis))
            cuts.append((axis, dim))
        expected[key] = local
        value = local if payload["do"] == "save" else torch.zeros_like(local)
        tensors[key] = Stored(value, shape, cuts)
    path = Path(payload["path"])
    if payload["do"] == "load":
        assert load(path, tensors, mesh).step == 1
        for key, stored in tensors.items():
            assert torch.equal(stored.local, expected[key]), key
    save(path, tensors, mesh, 1)
