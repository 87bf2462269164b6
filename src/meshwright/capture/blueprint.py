"""A model without weights, and how to make its weights, one at a time.

The values are bitwise those of plain PyTorch on a CPU: for a callable, what
`torch.manual_seed(seed); model = factory()` gives; for a module, what it holds;
for a module on the meta device, what its submodules' `reset_parameters` give,
called in the order of `module.modules()` after seeding once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from meshwright.capture.accepted import check_module
from meshwright.capture.construction import BUILD_IT_YOURSELF, TapeRecorder
from meshwright.capture.copying import copy_with_fakes
from meshwright.capture.execution import Keep
from meshwright.capture.meta import MetaValues
from meshwright.capture.replay import Replay, constant_value
from meshwright.capture.tape import View
from meshwright.errors import CaptureError, MeshwrightError, ModelError
from meshwright.torch_private import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

Names = frozenset[str] | set[str] | None


class Values(Protocol):
    """Where the real values of a blueprint's tensors come from."""

    def materialize(self, seed: int, keep: Keep, names: Names) -> dict[str, Tensor]: ...

    def constant(self, fake: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Blueprint:
    """A module whose parameters and buffers are fakes of `fake_mode`, on the CPU.

    Its training flag, hooks and plain attributes are those of the user's model.
    """

    module: nn.Module
    fake_mode: FakeTensorMode
    values: Values

    def materialize(self, seed: int, keep: Keep, names: Names = None) -> dict[str, Tensor]:
        """Makes parameters and buffers for real; returns what `keep` returns for each, by name.

        keep: gets the fully qualified name and the whole tensor, and returns
            what is to stay of it, cloned: the tensor's memory is then dropped.
            Tied parameters come once, under their first name.
        names: which to make, all when None. The others' random numbers are
            still drawn, so that the values don't depend on `names`.

        The caller's random state stays as it was.
        """
        return self.values.materialize(seed, keep, names)

    def constant(self, fake: Tensor) -> Tensor:
        """The real value of a fake that the module keeps as a plain attribute."""
        return self.values.constant(fake)


def blueprint(model: nn.Module | Callable[[], nn.Module]) -> Blueprint:
    """The blueprint of a module, or of what a callable builds. No weights are allocated.

    A module isn't touched: its blueprint has a copy of its structure. Raises
    CaptureError when the construction needs values (such as `.item()`), or when
    a module on the meta device has no way to make its weights.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if isinstance(model, nn.Module):
        return _of_module(model, mode)
    recorder = TapeRecorder(mode)
    built = _build(model, recorder)
    check_module(built)
    tensors = dict(named_tensors(built))
    if any(tensor.device.type == "meta" for tensor in tensors.values()):
        return _of_module(built, mode)
    finals: dict[str, View] = {}
    reals: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if recorder.tape.knows(tensor):
            finals[name] = recorder.tape.view(tensor)
        elif isinstance(tensor, FakeTensor):
            raise CaptureError(
                f"The callable gives {name} a value that it didn't make.", BUILD_IT_YOURSELF
            )
        else:
            reals[name] = tensor
    module = copy_with_fakes(built, mode) if reals else built
    return Blueprint(module, mode, _Recorded(recorder, finals, reals))


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by first name, shared ones once."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _build(factory: Callable[[], nn.Module], recorder: TapeRecorder) -> nn.Module:
    try:
        with recorder.recording():
            built = factory()
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise CaptureError(
            f"Building the model needs the values of its weights ({_needed(error)}).",
            BUILD_IT_YOURSELF,
        ) from error
    except MeshwrightError:
        raise
    except Exception as error:
        raise CaptureError(
            f"The callable that builds the model raised {type(error).__name__}: {error}",
            "If it works on its own, it needs real values. " + BUILD_IT_YOURSELF,
        ) from error
    if not isinstance(built, nn.Module):
        raise ModelError(
            f"The callable that builds the model returned {type(built).__name__}.",
            "Return a torch.nn.Module.",
        )
    return built


def _needed(error: Exception) -> str:
    return str(getattr(error, "func", error))


def _of_module(module: nn.Module, mode: FakeTensorMode) -> Blueprint:
    for name, tensor in named_tensors(module):
        if is_lazy(tensor):
            raise CaptureError(
                f"{name} has no shape yet: it belongs to a lazy module.",
                "Run the model once on an example, then pass it.",
            )
    check_module(module)
    meta = MetaValues(module)
    return Blueprint(copy_with_fakes(module, mode), mode, _Held(module, meta))


@dataclass(frozen=True)
class _Held:
    """Values of a module that is there; what is on the meta device is reset."""

    module: nn.Module
    meta: MetaValues

    def materialize(self, seed: int, keep: Keep, names: Names) -> dict[str, Tensor]:
        made = self.meta.materialize(seed, keep, names)
        for name, tensor in named_tensors(self.module):
            if tensor.device.type != "meta" and (names is None or name in names):
                made[name] = keep(name, tensor.detach())
        return made

    def constant(self, fake: Tensor) -> Tensor:
        raise CaptureError(
            f"The model uses a tensor of shape {tuple(fake.shape)} that has no values.",
            "Register the tensor with register_buffer.",
        )


@dataclass(frozen=True)
class _Recorded:
    """Values that come from running the recorded construction for real."""

    recorder: TapeRecorder
    finals: Mapping[str, View]
    reals: Mapping[str, Tensor]

    def materialize(self, seed: int, keep: Keep, names: Names) -> dict[str, Tensor]:
        finals = {n: view for n, view in self.finals.items() if names is None or n in names}
        made = Replay(self.recorder.tape).run(seed, finals, keep)
        for name, tensor in self.reals.items():
            if names is None or name in names:
                made[name] = keep(name, tensor.detach())
        return made

    def constant(self, fake: Tensor) -> Tensor:
        tape = self.recorder.tape
        if not tape.knows(fake):
            raise CaptureError(
                f"The model uses a tensor of shape {tuple(fake.shape)} that has no values.",
                "Register the tensor with register_buffer.",
            )
        return constant_value(Replay(tape), tape.view(fake))
