"""The batch as the Program sees it: named leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor

from meshwright.errors import ModelError
from meshwright.torch_private import FakeTensorMode, TreeSpec, flatten_with_paths

ROOT = "batch"


@dataclass(frozen=True)
class BatchSpec:
    """The structure of the batch that was captured.

    `paths` are those of the tensor leaves, in the order of the Program's batch
    inputs: `batch`, `batch[0]`, `batch['ids']`. `fixed` are the other leaves:
    the capture took them as they were, so they can't change from step to step.
    """

    paths: tuple[str, ...]
    fixed: Mapping[str, Any]
    tree: TreeSpec

    def flatten(self, batch: Any) -> dict[str, Tensor]:
        """The tensors of a batch by path; ModelError when it isn't built like the captured one."""
        leaves, tree = flatten_with_paths(batch, ROOT)
        found = {path: leaf for path, leaf in leaves if isinstance(leaf, Tensor)}
        if tree != self.tree or tuple(found) != self.paths:
            got, expected = ", ".join(found) or "no tensors", ", ".join(self.paths)
            raise ModelError(
                f"This batch holds {got}, the captured one held {expected}.",
                "Give every step a batch of the structure that was captured.",
            )
        for path, leaf in leaves:
            if path in self.fixed and leaf != self.fixed[path]:
                raise ModelError(
                    f"{path} is {leaf!r}, and was {self.fixed[path]!r} when the step was captured.",
                    "Pass what changes from step to step as a tensor.",
                )
        return found


def register_dataclasses(batch: Any) -> None:
    """Let PyTorch look into the dataclasses that a batch holds, as it does into named tuples."""
    while True:
        leaves, _ = flatten_with_paths(batch, ROOT)
        kinds = {type(x) for _, x in leaves if is_dataclass(x) and not isinstance(x, type)}
        if not kinds:
            return
        for kind in kinds:
            torch.export.register_dataclass(kind)


def batch_spec(batch: Any) -> BatchSpec:
    register_dataclasses(batch)
    leaves, tree = flatten_with_paths(batch, ROOT)
    paths = tuple(path for path, leaf in leaves if isinstance(leaf, Tensor))
    if not paths:
        raise ModelError(
            f"The example batch holds no tensor: got {type(batch).__name__}.",
            "Give an example batch with at least one tensor, batch dim first.",
        )
    fixed = {path: leaf for path, leaf in leaves if not isinstance(leaf, Tensor)}
    return BatchSpec(paths, fixed, tree)


def fake_leaf(leaf: Tensor, mode: FakeTensorMode) -> Tensor:
    """A fake of the same shape, strides and dtype, on the CPU and apart from autograd."""
    with mode:
        return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="cpu")


def describe_leaves(batch: Any) -> str:
    """The batch's leaves with their shapes, for messages."""
    leaves, _ = flatten_with_paths(batch, ROOT)
    return ", ".join(
        f"{path} {tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
        if isinstance(leaf, Tensor)
        else f"{path} = {leaf!r}"
        for path, leaf in leaves
    )
