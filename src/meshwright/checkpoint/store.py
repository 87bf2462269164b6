"""Saving and loading sharded tensors, under any mesh and sharding.

A checkpoint is a folder of `torch.distributed.checkpoint`'s own format plus a
`meta.json`. It is written under another name and renamed when it is complete,
so a folder with a `meta.json` is a whole checkpoint. All processes must see the
same file system, and all of them call `save` and `load`.

Keys are parameter paths, and `optimizer.<parameter>.<state>` for the optimizer.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from meshwright._version import __version__
from meshwright.checkpoint.guard import damaged, read_contents
from meshwright.cluster.mesh import Mesh
from meshwright.errors import UsageError

FORMAT_VERSION = 1
Cuts = Sequence[tuple[str, int | None]]
_Meshes = dict[tuple[str, tuple[str, ...]], DeviceMesh]  # (device type, order of axes)


class Stored(NamedTuple):
    """One tensor as this device holds it.

    local: this device's part. shape: of the whole tensor.
    cuts: (axis, dim) in the order in which the dims are cut, dim None for an
    axis of replicas; axes may be left out. Parts follow `torch.chunk`.
    """

    local: Tensor
    shape: tuple[int, ...]
    cuts: Cuts = ()


@dataclass(frozen=True)
class Meta:
    """What `meta.json` says: the step after which it was saved, and what the caller added."""

    step: int
    extra: dict[str, Any] = field(default_factory=dict)
    meshwright_version: str = __version__
    format_version: int = FORMAT_VERSION


def save(
    path: Path,
    tensors: Mapping[str, Stored],
    mesh: Mesh,
    step: int,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint to the folder `path`, in place of one that is there.

    extra: of JSON's types. Until the new checkpoint is complete the old one stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    first = _rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier()
    state = _state(tensors, mesh)
    with _alone() as no_dist:
        save_state(state, checkpoint_id=partial, no_dist=no_dist)
    _barrier()
    if first:
        meta = Meta(step, dict(extra or {}))
        with (partial / "meta.json").open("w") as file:
            json.dump(meta.__dict__, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        _swap(partial, path)
    _barrier()


def _swap(new: Path, path: Path) -> None:
    """Rename `new` to `path`; what was there is removed after that."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def read_meta(path: Path) -> Meta:
    """Raises UsageError when `path` holds no complete checkpoint that can be read here."""
    file = path / "meta.json"
    if not file.is_file():
        raise UsageError(
            f"{path} holds no complete checkpoint: there is no meta.json.",
            "Give the folder that a checkpoint was saved to. A folder whose name ends in"
            " .partial is what an interrupted save left behind, and can be deleted.",
        )
    try:
        content = json.loads(file.read_text())
        version = int(content["format_version"])
        if version <= FORMAT_VERSION:
            return Meta(int(content["step"]), dict(content["extra"]), content["meshwright_version"])
    except (ValueError, TypeError, KeyError):
        raise damaged(path, "meta.json can't be read") from None
    raise UsageError(
        f"The checkpoint in {path} has format {version};"
        f" this version reads up to {FORMAT_VERSION}.",
        f"Use Meshwright {content.get('meshwright_version', 'of a later version')}.",
    )


def load(path: Path, tensors: Mapping[str, Stored], mesh: Mesh) -> Meta:
    """Fill each local part in place from the checkpoint, whatever mesh wrote it.

    Keys that the checkpoint has beyond those asked for are ignored.
    Raises UsageError when the checkpoint is incomplete, damaged or unsafe, lacks
    a key, or holds a tensor of another shape under it.
    """
    meta = read_meta(path)
    contents = read_contents(path)
    missing = [key for key in tensors if key not in contents]
    if missing:
        listed = ", ".join(missing[:5]) + (" and others" if len(missing) > 5 else "")
        raise UsageError(
            f"The checkpoint in {path} lacks {len(missing)} of {len(tensors)} tensors: {listed}.",
            "Load it into the model and optimizer that it was saved from.",
        )
    for key, stored in tensors.items():
        if tuple(contents[key].size) != tuple(stored.shape):
            raise UsageError(
                f"{key} has shape {list(contents[key].size)} in the checkpoint in {path},"
                f" and {list(stored.shape)} in this model.",
                "Load it into the model that it was saved from.",
            )
    state = _state(tensors, mesh)
    try:
        with _alone() as no_dist:
            load_state(state, checkpoint_id=path, no_dist=no_dist)
    except (CheckpointException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise damaged(path, f"its tensors can't be read ({reason})") from error
    return meta


def _state(tensors: Mapping[str, Stored], mesh: Mesh) -> dict[str, Any]:
    """The tensors as `torch.distributed.checkpoint` takes them: views of the local parts."""
    if mesh.size == 1:
        return {key: stored.local.detach() for key, stored in tensors.items()}
    meshes: _Meshes = {}
    return {key: _distributed(stored, mesh, meshes) for key, stored in tensors.items()}


def _distributed(stored: Stored, mesh: Mesh, meshes: _Meshes) -> DTensor:
    """A DTensor over the local part.

    DTensor cuts a dim in the order of the mesh's axes. Where the part was cut
    in another order, the axes of the mesh that it gets are permuted.
    """
    cut = {axis: dim for axis, dim in stored.cuts if dim is not None and mesh.extent(axis) > 1}
    order = _axis_order(tuple(cut), cut, mesh)
    device = stored.local.device.type
    if (device, order) not in meshes:
        meshes[device, order] = _permuted(mesh, order, device)
    placements: list[Placement] = [Shard(cut[a]) if a in cut else Replicate() for a in order]
    stride, strides = 1, []
    for size in reversed(stored.shape):
        strides.append(stride)
        stride *= max(1, size)
    return DTensor.from_local(
        stored.local.detach(),
        meshes[device, order],
        placements,
        run_check=False,
        shape=torch.Size(stored.shape),
        stride=tuple(reversed(strides)),
    )


def _axis_order(axes: tuple[str, ...], cut: Mapping[str, int], mesh: Mesh) -> tuple[str, ...]:
    """The mesh's own order of axes if it cuts every dim as wanted, else the cuts' order first."""
    for dim in set(cut.values()):
        wanted = [axis for axis in axes if cut[axis] == dim]
        if wanted != [axis for axis in mesh.names if axis in wanted]:
            return (*axes, *(axis for axis in mesh.names if axis not in axes))
    return mesh.names


def _permuted(mesh: Mesh, order: tuple[str, ...], device: str) -> DeviceMesh:
    ranks = torch.arange(mesh.size).view([extent for _, extent in mesh.axes])
    permuted = ranks.permute([mesh.names.index(axis) for axis in order])
    return DeviceMesh(device, permuted, mesh_dim_names=order)


@contextlib.contextmanager
def _alone() -> Iterator[bool]:
    """Whether this is the only process, without PyTorch's warning that it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield not dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
