"""Checkpoints: the same tensors back under any mesh, and nothing bad taken as good."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from meshwright.checkpoint.store import Stored, load, read_meta, save
from meshwright.cluster.mesh import Mesh
from meshwright.errors import UsageError

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from distributed import fork_processes

ONE = Mesh((("data", 1),))
SHAPES = {
    "even": (8, 6),
    "uneven": (5, 7),
    "short": (1, 4),
    "empty": (0, 3),
    "scalar": (),
    "half": (6, 2),
    "optimizer.even.exp_avg": (8, 6),
    "optimizer.even.step": (),
}


def whole(key: str) -> Tensor:
    shape, seed = SHAPES[key], sorted(SHAPES).index(key)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(torch.bfloat16) if key == "half" else values


def blank() -> dict[str, Stored]:
    return {key: Stored(torch.zeros_like(whole(key)), SHAPES[key]) for key in SHAPES}


def check(tensors: dict[str, Stored]) -> None:
    for key, stored in tensors.items():
        assert torch.equal(stored.local, whole(key)), key


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tensors = {key: Stored(whole(key), SHAPES[key]) for key in SHAPES}
    save(tmp_path / "ck", tensors, ONE, 3, {"note": "x"})
    return tmp_path / "ck"


def test_round_trip_on_one_device(saved: Path) -> None:
    tensors = blank()
    meta = load(saved, tensors, ONE)
    check(tensors)
    assert (meta.step, meta.extra) == (3, {"note": "x"})
    assert os.listdir(saved.parent) == ["ck"]


def test_save_replaces(saved: Path) -> None:
    save(saved, {"a": Stored(torch.ones(2), (2,))}, ONE, 4)
    assert read_meta(saved).step == 4
    with pytest.raises(UsageError, match="lacks 8 of 8 tensors: even, uneven"):
        load(saved, blank(), ONE)
    assert os.listdir(saved.parent) == ["ck"]


@pytest.mark.processes
def test_other_meshes(tmp_path: Path) -> None:
    """Two processes save, with uneven and empty parts; four and one load."""
    from checkpoint_workers import run

    payload: dict[str, Any] = {"path": str(tmp_path / "ck"), "do": "save"}
    two = {"axes": [["tensor", 2]], "cuts": [["tensor", 0]]}
    (tmp_path / "two").mkdir()
    fork_processes(run, 2, tmp_path / "two", payload | two)
    tensors = blank()
    assert load(tmp_path / "ck", tensors, ONE).step == 1
    check(tensors)
    # dim 0 cut by the inner axis first and then by the outer one, then saved again so
    four = {"axes": [["data", 2], ["tensor", 2]], "cuts": [["tensor", 0], ["data", 0]]}
    (tmp_path / "four").mkdir()
    fork_processes(run, 4, tmp_path / "four", payload | four | {"do": "load"})
    tensors = blank()
    load(tmp_path / "ck", tensors, ONE)
    check(tensors)


def test_missing(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(UsageError, match="holds no complete checkpoint") as caught:
        load(tmp_path / "nothing", blank(), ONE)
    assert caught.value.remedy
    (saved / "meta.json").unlink()
    with pytest.raises(UsageError, match="holds no complete checkpoint"):
        load(saved, blank(), ONE)


def test_an_interrupted_save_leaves_the_old_one(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meshwright.checkpoint.store.save_state", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(saved, blank(), ONE, 9)
    with pytest.raises(UsageError, match="no complete checkpoint"):
        read_meta(saved.with_name(".ck.partial"))
    tensors = blank()
    assert load(saved, tensors, ONE).step == 3
    check(tensors)


def test_newer_format(saved: Path) -> None:
    content = json.loads((saved / "meta.json").read_text()) | {"format_version": 99}
    (saved / "meta.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="format 99; this version reads up to 1"):
        load(saved, blank(), ONE)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": "x"}'])
def test_damaged_meta(saved: Path, text: str) -> None:
    (saved / "meta.json").write_text(text)
    with pytest.raises(UsageError, match=r"damaged: meta\.json"):
        load(saved, blank(), ONE)


def test_damaged_files(saved: Path) -> None:
    data = next(saved.glob("*.distcp"))
    content = data.read_bytes()
    data.write_bytes(bytes(len(content)))
    with pytest.raises(UsageError, match="its tensors can't be read"):
        load(saved, blank(), ONE)
    data.write_bytes(content[:-100])
    with pytest.raises(UsageError, match="is too short"):
        load(saved, blank(), ONE)
    data.unlink()
    with pytest.raises(UsageError, match="is missing"):
        load(saved, blank(), ONE)
    (saved / ".metadata").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(UsageError, match=r"\.metadata can't be read"):
        load(saved, blank(), ONE)
    (saved / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UsageError, match="no table of contents"):
        load(saved, blank(), ONE)


class Runs:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_metadata_that_would_run_code_is_refused(saved: Path, tmp_path: Path) -> None:
    path = saved / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.planner_data = Runs(str(tmp_path / "ran"))
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(UsageError, match=r"would construct (posix|nt)\.mkdir"):
        load(saved, blank(), ONE)
    assert not (tmp_path / "ran").exists()


def test_bytes_in_place_of_a_tensor_are_refused(saved: Path) -> None:
    from torch.distributed.checkpoint import BytesStorageMetadata

    path = saved / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    metadata.state_dict_metadata["even"] = BytesStorageMetadata()
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(UsageError, match="'even' is not a tensor"):
        load(saved, blank(), ONE)


def test_files_outside_are_refused(saved: Path) -> None:
    path = saved / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../elsewhere"
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(UsageError, match="outside of its folder"):
        load(saved, blank(), ONE)


def test_other_shape(saved: Path) -> None:
    tensors = {"even": Stored(torch.zeros(6, 8), (6, 8))}
    with pytest.raises(UsageError, match=r"even has shape \[8, 6\] .* \[6, 8\] in this model"):
        load(saved, tensors, ONE)
