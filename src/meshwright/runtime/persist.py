"""A job's state as a checkpoint that any plan of the same model can load.

Tensors are stored under their own names in plain layouts that
`torch.distributed.checkpoint` knows: whole dims cut in `torch.chunk` order. A
layout that cuts inside a dim, as the heads of a fused projection, is brought
to a plain one first, and back when loading.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from meshwright.checkpoint.store import Meta, Stored, load, read_meta, save
from meshwright.errors import UsageError
from meshwright.layout.types import Layout
from meshwright.runtime.place import relay

if TYPE_CHECKING:
    from meshwright.runtime.job import Job

_OPTIMIZER = "optimizer."


def save_job(job: Job, path: Path) -> None:
    """Write parameters, buffers, optimizer state and step number to the folder `path`."""
    groups = [
        {key: value for key, value in group.items() if _plain(value) and key != "params"}
        for group in job.optimizer.param_groups
    ]
    extra = {
        "plan": job.plan.strategy,
        "model": job.plan.model,
        "optimizer": type(job.optimizer).__name__,
        "groups": groups,
    }
    tensors = {}
    for key, (local, shape, layout) in _state(job).items():
        plain = plain_layout(shape, layout)
        tensors[key] = Stored(relay(local, shape, layout, plain, job.comm), shape, _cuts(plain))
    save(path, tensors, job.mesh, job.step_number, extra)


def load_job(job: Job, path: Path) -> Meta:
    """Fill the job's state in place, and take up the step number.

    Raises UsageError when the checkpoint is of another model or optimizer.
    """
    meta = read_meta(path)
    kind = type(job.optimizer).__name__
    if meta.extra.get("optimizer") != kind:
        raise UsageError(
            f"The checkpoint in {path} was saved with the optimizer "
            f"{meta.extra.get('optimizer')}, and this job has {kind}.",
            "Resume with the optimizer that it was saved with.",
        )
    _make_state(job)
    state = _state(job)
    landing = {}
    for key, (local, shape, layout) in state.items():
        plain = plain_layout(shape, layout)
        landing[key] = Stored(
            relay(local, shape, layout, plain, job.comm).clone(), shape, _cuts(plain)
        )
    load(path, landing, job.mesh)
    for key, (local, shape, layout) in state.items():
        plain = plain_layout(shape, layout)
        with torch.no_grad():
            local.copy_(relay(landing[key].local, shape, plain, layout, job.comm))
    for group, saved in zip(job.optimizer.param_groups, meta.extra.get("groups", ()), strict=False):
        group.update({k: _as(group.get(k), v) for k, v in saved.items() if k in group})
    job.trainer.step_number = meta.step
    return meta


def plain_layout(shape: tuple[int, ...], layout: Layout) -> Layout:
    """The cuts of `layout` that cut a whole dim; the others are left out."""
    return Layout(
        tuple(
            (axis, split)
            for axis, split in layout.shards
            if split.outer == 1 and split.extent == shape[split.dim]
        )
    )


def _cuts(layout: Layout) -> tuple[tuple[str, int | None], ...]:
    return tuple((axis, split.dim) for axis, split in layout.shards)


def _state(job: Job) -> dict[str, tuple[Tensor, tuple[int, ...], Layout]]:
    """Every tensor of the job's state by its key, with whole shape and layout."""
    found: dict[str, tuple[Tensor, tuple[int, ...], Layout]] = {}
    for path, parameter in job.trainer.parameters.items():
        shape, layout = job.storage(path)
        found[path] = (parameter.data, shape, layout)
        for name, value in job.optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                continue
            key = f"{_OPTIMIZER}{path}.{name}"
            if value.shape == parameter.shape and value.dim():
                found[key] = (value, shape, layout)
            else:
                found[key] = (value, tuple(value.shape), Layout())
    for path, buffer in job.trainer.buffers.items():
        found[path] = (buffer, *job.storage(path))
    return found


def _make_state(job: Job) -> None:
    """Have a fresh optimizer make its state, by a step with zero gradients and no effect."""
    if job.optimizer.state:
        return
    kept = {path: p.data.clone() for path, p in job.trainer.parameters.items()}
    grads = {path: p.grad for path, p in job.trainer.parameters.items()}
    for stored in job.lowered.parameters:
        if stored.trainable and stored.gradient is not None:
            parameter = job.trainer.parameters[stored.path]
            parameter.grad = torch.zeros_like(parameter)
    job.optimizer.step()
    for path, parameter in job.trainer.parameters.items():
        parameter.data.copy_(kept[path])
        parameter.grad = grads[path]


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _as(old: Any, new: Any) -> Any:
    return tuple(new) if isinstance(old, tuple) and isinstance(new, list) else new
