import json
import sys

import pytest
import torch

from meshwright.errors import ModelError, StrategyError
from meshwright.zoo.reference import load_task

USER_FILE = """
from __future__ import annotations
from functools import partial
import torch
from torch import nn
from meshwright.errors import StrategyError
from meshwright.task import Task

def make(width: int = 4, rate=0.5, flag: bool = False, note: str | None = None) -> Task:
    batch = torch.ones(2, width)
    name = f"{width!r} {rate!r} {flag!r} {note!r}"
    return Task(model=partial(nn.Linear, width, 1), loss=None, batch=batch, name=name)

def needs(width: int) -> Task:
    return make(width)

def anything(**options) -> Task:
    return Task(model=nn.Identity(), loss=None, batch=None, name=repr(options))

def raises() -> Task:
    return {}["nope"]

def raises_ours() -> Task:
    raise StrategyError("ours", "keep it")

def returns_module():
    return nn.Linear(1, 1)

NUMBER = 3
"""

LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 64,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "user_model.py").write_text(USER_FILE)
    (tmp_path / "broken.py").write_text("def make(:\n")
    (tmp_path / "imports_missing.py").write_text("import no_such_dependency\n")
    (tmp_path / "tiny.json").write_text(json.dumps(LLAMA))
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "untyped.json").write_text("{}")
    (tmp_path / "unknown.json").write_text('{"model_type": "no_such_model"}')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("user_model", "imports_missing", "meshwright_user_")):
            del sys.modules[name]


def test_zoo_options_come_as_words():
    task = load_task("zoo:gpt", {"layers": "1", "width": "32", "heads": 2, "dropout": "0.1"})
    model = task.model()
    assert len(model.blocks) == 1
    assert model.config.dropout == 0.1


@pytest.mark.parametrize("place", ["user_model.py", "./user_model.py", "user_model"])
def test_a_factory_is_found_in_a_file_or_module(folder, place):
    words = {"width": "8", "rate": "1e-3", "flag": "yes", "note": "3"}
    assert load_task(f"{place}:make", words).name == "8 0.001 True '3'"
    assert load_task(f"{place}:make").name == "4 0.5 False None"


def test_a_float_may_be_given_as_a_whole_number(folder):
    assert load_task("user_model.py:make", {"rate": 2}).name == "4 2.0 False None"


def test_a_factory_that_takes_anything_gets_what_the_words_spell(folder):
    words = {"a": "1", "b": "0.5", "c": "true", "d": "[1]", "e": "plain"}
    name = load_task("user_model.py:anything", words).name
    assert name == "{'a': 1, 'b': 0.5, 'c': True, 'd': '[1]', 'e': 'plain'}"


def test_a_file_may_import_its_neighbours(folder):
    (folder / "nested").mkdir()
    (folder / "nested" / "neighbour_of_user_model.py").write_text(USER_FILE)
    (folder / "nested" / "entry.py").write_text("from neighbour_of_user_model import make\n")
    assert load_task("nested/entry.py:make").batch.shape == (2, 4)


@pytest.mark.parametrize(
    ("reference", "options", "says", "remedy", "cause"),
    [
        ("gpt", {}, "'gpt' names no model", "zoo:NAME", None),
        ("zoo:", {}, "names no model", "zoo:NAME", None),
        ("zoo:gtp", {}, "no model 'gtp'", "Did you mean zoo:gpt?", None),
        ("zoo:gpt", {"layer": "3"}, "no option layer", "Did you mean layers?", None),
        ("zoo:gpt", {"layers": "many"}, "must be a whole number", "layers=4", ValueError),
        ("zoo:gpt", {"layers": 1.5}, "must be a whole number", "layers=4", None),
        ("missing.py:make", {}, "no file missing.py", "Check the path", None),
        ("broken.py:make", {}, "SyntaxError", "--debug", SyntaxError),
        ("imports_missing.py:make", {}, "no_such_dependency", "--debug", ModuleNotFoundError),
        ("imports_missing:make", {}, "no_such_dependency", "--debug", ModuleNotFoundError),
        ("no_such.module:make", {}, "no module no_such", "Install it", ModuleNotFoundError),
        ("user_model.py:mak", {}, "has no mak", "Did you mean user_model.py:make?", AttributeError),
        ("user_model.py:NUMBER", {}, "type int", "Name a function", None),
        ("user_model.py:make", {"flag": "maybe"}, "true or false", "flag=true", None),
        ("user_model.py:needs", {}, "needs width", "width=VALUE", None),
        ("user_model.py:raises", {}, "KeyError: 'nope' (at ", "--debug", KeyError),
        ("user_model.py:raises", {"x": "1"}, "takes no options", "Leave x out", None),
        ("user_model.py:returns_module", {}, "type Linear, not a Task", "Return mesh", None),
        ("hf:missing.json", {}, "no config file", "config.json", FileNotFoundError),
        ("hf:bad.json", {}, "is not JSON", "config.json", ValueError),
        ("hf:untyped.json", {}, "no model_type", "model_type", None),
    ],
)
def test_each_mistake_is_named_with_what_to_do(folder, reference, options, says, remedy, cause):
    with pytest.raises(ModelError) as caught:
        load_task(reference, options)
    assert says in caught.value.message
    assert remedy in caught.value.remedy
    if cause is not None:
        assert isinstance(caught.value.__cause__, cause)


def test_the_line_that_raised_is_named(folder):
    with pytest.raises(ModelError, match=r"user_model\.py:21\)"):
        load_task("user_model.py:raises")


def test_an_error_of_ours_passes_unchanged(folder):
    with pytest.raises(StrategyError, match="ours"):
        load_task("user_model.py:raises_ours")


def test_hf_without_transformers_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError) as caught:
        load_task("hf:tiny.json")
    assert "meshwright[hf]" in caught.value.remedy
    assert isinstance(caught.value.__cause__, ImportError)


class TestHuggingFace:
    @pytest.fixture(autouse=True)
    def _needs_transformers(self, folder):
        pytest.importorskip("transformers", reason="the hf extra is not installed")

    def test_a_config_becomes_a_task_that_trains(self):
        words = {"global_batch": "2", "seq_len": "16", "num_hidden_layers": "1"}
        task = load_task("hf:tiny.json", words)
        model = task.model()
        assert model.config.num_hidden_layers == 1
        assert next(model.parameters()).dtype == torch.float32
        assert task.name == "llama"
        assert task.batch["input_ids"].shape == (2, 16)
        output = model(**task.batch)
        output.loss.backward()
        assert torch.isfinite(output.loss)
        assert "past_key_values" not in output

    @pytest.mark.parametrize(
        ("reference", "options", "says"),
        [
            ("hf:tiny.json", {"num_layer": "1"}, "no option num_layer"),
            ("hf:tiny.json", {"num_hidden_layers": "x"}, "must be a whole number"),
            ("hf:tiny.json", {"seq_len": "65"}, "has 64 positions"),
            ("hf:tiny.json", {"dtype": "int8"}, "dtype is 'int8'"),
            ("hf:tiny.json", {"seq_len": "0"}, "seq_len is 0"),
            ("hf:unknown.json", {}, "can't read hf:unknown.json"),
        ],
    )
    def test_mistakes(self, reference, options, says):
        with pytest.raises(ModelError) as caught:
            load_task(reference, options)
        assert says in caught.value.message
        assert caught.value.remedy
