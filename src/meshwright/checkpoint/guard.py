"""Looking at a checkpoint's table of contents before PyTorch acts on it.

`torch.distributed.checkpoint` keeps that table in a pickle (`.metadata`) and
unpickles it without restriction; an entry that claims to hold bytes in place
of a tensor is unpickled freely as well. Both would let a file from elsewhere
run code. Here the table may name only the classes that such a table is made
of, and may hold only tensors, in files of the checkpoint's own folder.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from meshwright.errors import UsageError

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *(
        (_METADATA, name)
        for name in (
            "Metadata",
            "TensorStorageMetadata",
            "ChunkStorageMetadata",
            "BytesStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("collections", "OrderedDict"),
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in _ALLOWED or dtype:
            return super().find_class(module, name)
        raise UsageError(
            f"The checkpoint's .metadata would construct {module}.{name}.",
            "No checkpoint needs that: don't use this file, and ask where it comes from.",
        )


def read_contents(folder: Path) -> Mapping[str, TensorStorageMetadata]:
    """What the checkpoint in `folder` holds, by key.

    Raises UsageError when the table is damaged or holds anything but tensors.
    """
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            metadata = _Reader(file).load()
    except UsageError:
        raise
    except Exception as error:
        raise damaged(folder, f"{path.name} can't be read ({error})") from None
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise damaged(folder, f"{path.name} is no table of contents")
    for info in metadata.storage_data.values():
        name = info.relative_path
        if Path(name).name != name:
            raise damaged(folder, f"it refers to {name!r}, outside of its folder")
        if not (folder / name).is_file():
            raise damaged(folder, f"its file {name} is missing")
        if (folder / name).stat().st_size < info.offset + info.length:
            raise damaged(folder, f"its file {name} is too short")
    contents = {}
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise damaged(folder, f"{key!r} is not a tensor")
        contents[key] = entry
    return contents


def damaged(folder: Path, what: str) -> UsageError:
    return UsageError(
        f"The checkpoint in {folder} is damaged: {what}.",
        "Go back to an earlier checkpoint, or copy this one again from where it was written.",
    )
