"""From what a user writes for MODEL to a Task.

zoo:NAME                  a model of this package
hf:NAME                   a well-known model, whose config comes with the package
hf:PATH_TO_CONFIG_JSON    a model of Hugging Face, from its config alone
path/file.py:factory      a function in a file that returns a Task
package.module:factory    a function in an importable module that returns a Task
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch

from meshwright.errors import MeshwrightError, ModelError
from meshwright.task import Task
from meshwright.zoo.huggingface import huggingface_task
from meshwright.zoo.options import Option, cast_options
from meshwright.zoo.registry import FACTORIES

FORMS = (
    "Give zoo:NAME, hf:NAME, hf:PATH_TO_CONFIG_JSON, path/file.py:factory or "
    f"package.module:factory; the zoo has {', '.join(sorted(FACTORIES))}."
)


def load_task(reference: str, options: Mapping[str, Option] = MappingProxyType({})) -> Task:
    """The Task that `reference` names, its factory called with `options`.

    Options may be words, as a command line has them. Raises ModelError for
    whatever goes wrong, with the cause chained. PyTorch's random numbers are seeded
    for the factory alone, so that what it draws is the same in every process.
    """
    # Every process of a run calls the factory, and must get the same batch and weights.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _load(reference, options)


def _load(reference: str, options: Mapping[str, Option]) -> Task:
    place, separator, name = reference.rpartition(":")
    if not separator or not place or not name:
        raise ModelError(f"{reference!r} names no model.", FORMS)
    if reference.startswith("hf:"):
        return huggingface_task(reference.removeprefix("hf:"), options)
    if place == "zoo":
        return _call(_zoo_factory(name), reference, options)
    module = _load_file(Path(place)) if _is_file(place) else _load_module(place)
    return _call(_attribute(module, name, place), reference, options)


def _zoo_factory(name: str) -> Callable[..., Task]:
    if name not in FACTORIES:
        close = difflib.get_close_matches(name, FACTORIES, n=1)
        hint = f"Did you mean zoo:{close[0]}? " if close else ""
        raise ModelError(
            f"The zoo has no model {name!r}.", f"{hint}It has {', '.join(sorted(FACTORIES))}."
        )
    return FACTORIES[name]


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place or "\\" in place


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(
            f"There is no file {path}.", f"Check the path; it is read from {Path.cwd()}."
        )
    resolved = path.resolve()
    # Named after the whole path, so that two files called model.py don't collide;
    # in sys.modules, as dataclasses and pickle look there.
    digest = hashlib.sha256(str(resolved).encode()).hexdigest()[:8]
    name = f"meshwright_user_{resolved.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path} is not a Python file.", "Give a file whose name ends in .py.")
    _make_importable(resolved.parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _failed(f"{path} could not be imported", error) from error
    return module


def _load_module(name: str) -> ModuleType:
    _make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(f"The module {name} could not be imported", error) from error
        raise ModelError(
            f"There is no module {error.name}.",
            "Install it, run from the folder that holds it, or give path/file.py:factory.",
        ) from error
    except Exception as error:
        raise _failed(f"The module {name} could not be imported", error) from error


def _make_importable(folder: Path) -> None:
    # Last, so that a user's files never shadow an installed package.
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _attribute(module: ModuleType, name: str, place: str) -> Callable[..., Any]:
    try:
        factory = getattr(module, name)
    except AttributeError as error:
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        close = difflib.get_close_matches(name, public, n=1)
        hint = f"Did you mean {place}:{close[0]}? " if close else ""
        raise ModelError(
            f"{place} has no {name}.",
            f"{hint}Define a function {name}() there that returns a meshwright.Task.",
        ) from error
    if not callable(factory):
        raise ModelError(
            f"{place}:{name} is of type {type(factory).__name__}, which can't be called.",
            "Name a function that returns a meshwright.Task.",
        )
    checked: Callable[..., Any] = factory
    return checked


def _call(factory: Callable[..., Any], reference: str, options: Mapping[str, Option]) -> Task:
    arguments = cast_options(factory, options, reference)
    try:
        task = factory(**arguments)
    except MeshwrightError:
        raise
    except Exception as error:
        raise _failed(f"{reference} raised", error) from error
    if not isinstance(task, Task):
        raise ModelError(
            f"{reference} returned an object of type {type(task).__name__}, not a Task.",
            "Return meshwright.Task(model=..., loss=..., batch=...) from it.",
        )
    return task


def _failed(what: str, error: Exception) -> ModelError:
    return ModelError(
        f"{what}: {type(error).__name__}: {error}{_where(error)}",
        "Correct it there; --debug shows the whole traceback.",
    )


def _where(error: Exception) -> str:
    """The user's line that raised: the innermost one outside this package and the importer."""
    found = ""
    here = str(Path(__file__).parent)
    traceback = error.__traceback__
    while traceback is not None:
        filename = traceback.tb_frame.f_code.co_filename
        if not filename.startswith((here, "<frozen")):
            found = f" (at {filename}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    return found
