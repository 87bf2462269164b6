"""Every part of PyTorch that Meshwright uses though it isn't documented, and why.

Nothing else in the project imports these. `tests/test_torch_private.py` checks
each one by what it does, so that a PyTorch release that moves or changes one
fails there, by name, and not somewhere inside a capture.

FakeTensorMode, FakeTensor
    tensors with a shape, dtype, strides and storage identity but no memory.
    The public `meta` device is no substitute: it hides the real device, so
    that device-dependent choices (which attention kernel) would differ.
DataDependentOutputException, DynamicOutputShapeException,
UnsupportedOperatorException
    what fake tensors raise when an op needs values that don't exist.
storage_key
    which tensors share memory; the address can't tell, since fakes have none.
TorchDispatchMode
    sees every ATen op below autograd: how the step and the construction of a
    model are recorded. Public in effect, and named without an underscore, but
    in a private module.
without_modes
    real computation inside of a dispatch mode, such as cloning a constant.
forget_conversions
    fakes are remembered by weak references, and PyTorch refuses to convert a
    module (`.half()`) whose parameters have any.
TRUNCATED_NORMAL
    the code of `torch.nn.init.trunc_normal_`: it draws until the values are
    within bounds, which fakes can't answer, so it is recorded as one op.
compiling
    makes `torch.compiler.is_compiling()` true: libraries ask it whether they may
    look at values ("is the mask all ones?"), and otherwise do without.
unfused_recurrence
    without oneDNN a recurrent layer is recorded as the ops it consists of. The
    public `torch.backends.mkldnn.flags` also sets, and warns about, much else.
OpOverload
    the type of what a dispatch mode sees, for annotations.
functionalization, to_functional, from_functional, is_functional
    C++ functionalization: in-place ops and writes through views reach a
    dispatch mode as pure ops. The public `torch.func.functionalize` can't be
    used around `torch.autograd.grad` and module state.
forget_value
    a fake made from a literal (`torch.tensor(0)`) remembers its value; a buffer must not.
current_autograd_node, next_sequence_number, autograd_graph, GraphNode
    which forward op a backward op differentiates; and the graph that a backward
    will follow, in the order in which it was made.
LengthsEnvironment, new_length, length_terms, give_lengths, remember_ops
    symbolic sizes: lengths that are only known when the step runs. PyTorch carries
    them through shapes, views and gradients, and asks when a branch depends on one.
    What two sizes give together is worked out once: one op compares and multiplies
    its sizes a hundred times over, and sympy takes as long each time. Ops on such
    sizes are not remembered: each list has a size of its own, so nothing is found
    again, and PyTorch makes each result twice to remember it.
checkpoints_may_accumulate
    a reentrant `torch.utils.checkpoint` refuses `torch.autograd.grad`, since it adds to
    `.grad` of what it uses, where a capture looks too.
copy_gradient_hooks
    the hooks that a user set on a parameter, for the tensor that takes its place.
BatchNormBase
    what all batch norms are: some of them read a counter in their forward.
unchecked_distributions
    `torch.distributions` looks at the values of its parameters unless told not to; there
    is a public way to tell it, and none to ask what it was told before.
has_accumulation_hooks
    hooks that run after a gradient is added to `.grad`, which a captured step has none of.
flatten_with_paths, flatten, key_path, tree_map, TreeSpec
    the pytree whose registrations (named tuples, Hugging Face outputs)
    `torch.func` and `torch.export` use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import sympy
import torch
from torch import SymFloat, SymInt, Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.compiler import _compile_session_context as compiling
from torch.fx.experimental.sym_node import SymNode as _SymNode
from torch.fx.experimental.symbolic_shapes import ShapeEnv as _ShapeEnv
from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _disable_current_modes as without_modes
from torch.utils._pytree import TreeSpec, keystr, tree_flatten, tree_flatten_with_path, tree_map
from torch.utils._sympy.symbol import SymT as _SymT
from torch.utils._sympy.symbol import make_symbol as _make_symbol

__all__ = [
    "TRUNCATED_NORMAL",
    "BatchNormBase",
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "GraphNode",
    "LengthsEnvironment",
    "OpOverload",
    "TorchDispatchMode",
    "TreeSpec",
    "UnsupportedOperatorException",
    "autograd_graph",
    "checkpoints_may_accumulate",
    "compiling",
    "copy_gradient_hooks",
    "current_autograd_node",
    "flatten",
    "flatten_with_paths",
    "forget_conversions",
    "forget_value",
    "from_functional",
    "functionalization",
    "give_lengths",
    "has_accumulation_hooks",
    "is_functional",
    "length_terms",
    "new_length",
    "next_sequence_number",
    "remember_ops",
    "storage_key",
    "to_functional",
    "tree_map",
    "unchecked_distributions",
    "unfused_recurrence",
    "without_modes",
]


TRUNCATED_NORMAL = torch.nn.init._no_grad_trunc_normal_.__code__


@contextmanager
def functionalization() -> Iterator[None]:
    """Within it, ops on functional tensors never write: dispatch modes see pure ops only."""
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()  # type: ignore[no-untyped-call]


@contextmanager
def unfused_recurrence() -> Iterator[None]:
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Distributions made within don't look at the values of their parameters."""
    before: bool = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


@contextmanager
def checkpoints_may_accumulate() -> Iterator[None]:
    before = torch.autograd._is_checkpoint_valid
    torch.autograd._is_checkpoint_valid = lambda: True
    try:
        yield
    finally:
        torch.autograd._is_checkpoint_valid = before


def copy_gradient_hooks(source: Tensor, target: Tensor) -> None:
    if target.requires_grad:
        for hook in (source._backward_hooks or {}).values():
            target.register_hook(hook)  # type: ignore[no-untyped-call]


def has_accumulation_hooks(tensor: Tensor) -> bool:
    return bool(tensor._post_accumulate_grad_hooks)


def to_functional(tensor: Tensor) -> Tensor:
    """A wrapper that turns writes into rebinding of the tensor that it holds."""
    return torch._to_functional_tensor(tensor)


def forget_value(tensor: Tensor) -> None:
    """Drop the value that a fake of a literal (`torch.tensor(0)`) remembers."""
    if isinstance(tensor, FakeTensor):
        tensor.constant = None


def is_functional(tensor: Tensor) -> bool:
    return bool(torch._is_functional_tensor(tensor))


def from_functional(tensor: Tensor) -> Tensor:
    """The tensor that a wrapper holds, after all pending writes."""
    if not torch._is_functional_tensor(tensor):
        return tensor
    torch._sync(tensor)  # type: ignore[attr-defined, no-untyped-call]
    return torch._from_functional_tensor(tensor)


def current_autograd_node() -> int | None:
    """Sequence number of the autograd node now running, None outside of a backward."""
    node = torch._C._current_autograd_node()
    return None if node is None else int(node._sequence_nr())


class GraphNode(NamedTuple):
    """A node of autograd's graph. edges: what it passes gradients to, by place in the graph,
    and which of their inputs; None for nothing. leaf: the tensor whose gradient ends here.
    function: the object of a user's `autograd.Function`."""

    sequence: int
    name: str
    edges: tuple[tuple[int | None, int], ...]
    leaf: Tensor | None
    function: Any


def autograd_graph(tensor: Tensor) -> list[GraphNode]:
    """All that a backward from `tensor` runs, leaves first, then in the order of the forward."""
    seen: dict[int, Any] = {}
    stack = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and id(node) not in seen:
            seen[id(node)] = node
            stack.extend(following for following, _ in node.next_functions)
    leaves = [node for node in seen.values() if hasattr(node, "variable")]
    inner = [node for node in seen.values() if not hasattr(node, "variable")]
    nodes = [*leaves, *sorted(inner, key=lambda node: int(node._sequence_nr()))]
    place = {id(node): number for number, node in enumerate(nodes)}
    return [
        GraphNode(
            -1 if hasattr(node, "variable") else int(node._sequence_nr()),
            node.name(),
            tuple(
                (None if following is None else place[id(following)], number)
                for following, number in node.next_functions
            ),
            getattr(node, "variable", None),
            node if isinstance(node, torch.autograd.function.FunctionCtx) else None,
        )
        for node in nodes
    ]


def next_sequence_number() -> int:
    """The sequence number that the next autograd node made on this thread will get."""
    return int(torch._C._autograd._get_sequence_nr())


def forget_conversions(mode: FakeTensorMode) -> None:
    """Drops the mode's weak references to the fakes that it made."""
    mode.fake_tensor_converter.meta_converter.tensor_memo.clear()


def storage_key(tensor: Tensor) -> int:
    """Identity of a tensor's memory, valid while any tensor on it lives; fakes have one too."""
    return int(tensor.untyped_storage()._cdata)


class LengthsEnvironment(_ShapeEnv):
    """Where symbolic sizes live, with what has been computed of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.made: dict[Any, _SymNode] = {}

    def evaluate_sym_node(
        self, sym_node: _SymNode, size_oblivious: bool = False, fallback_value: Any = None
    ) -> Any:
        known: Any = sym_node  # whose hints may also be symbolic, of which there are none here
        return self.evaluate_expr(
            known.expr, known.hint, known.fx_node, size_oblivious, fallback_value=fallback_value
        )


class _SizeNode(_SymNode):
    """A symbolic number that asks what its environment made before it computes."""

    def wrap_int(self, num: int) -> _SymNode:
        made: _SymNode = self._once(("wrap_int", num), lambda: _SymNode.wrap_int(self, num))
        return made

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        environment = self.shape_env
        assert isinstance(environment, LengthsEnvironment)
        found = environment.made.get(key)
        if found is None:
            found = make()
            if type(found) is _SymNode:
                found.__class__ = _SizeNode
            environment.made[key] = found
        return found


def _remembering(name: str) -> Callable[[_SizeNode, _SymNode], Any]:
    compute = getattr(_SymNode, name)

    def run(self: _SizeNode, other: _SymNode) -> Any:
        key = (name, self._expr, self.pytype, other._expr, other.pytype)
        return self._once(key, lambda: compute(self, other))

    return run


def _remembering_layout(name: str) -> Callable[[_SizeNode, Any, Any], Any]:
    compute = getattr(_SymNode, name)

    def run(self: _SizeNode, sizes: Any, strides: Any) -> Any:
        key = (name, *(node._expr for node in sizes), *(node._expr for node in strides))
        return self._once(key, lambda: compute(self, sizes, strides))

    return run


for _name in (
    "eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "mod", "int_floordiv", "floordiv",
    "sym_max", "sym_min", "and_", "or_",
):  # fmt: skip
    setattr(_SizeNode, _name, _remembering(_name))
for _name in (
    "is_contiguous", "is_channels_last_contiguous_2d", "is_channels_last_contiguous_3d",
    "is_channels_last_strides_2d", "is_channels_last_strides_3d",
    "is_non_overlapping_and_dense_indicator",
):  # fmt: skip
    setattr(_SizeNode, _name, _remembering_layout(_name))


def give_lengths(mode: FakeTensorMode, environment: LengthsEnvironment | None) -> None:
    """Let the fakes of `mode` have sizes of `environment`; None takes it away again."""
    mode.shape_env = environment


def remember_ops(mode: FakeTensorMode, remember: bool) -> None:
    """Whether the mode is to keep what ops give, for the same op on fakes that look alike."""
    mode.cache_enabled = remember


def new_length(environment: LengthsEnvironment, hint: int) -> tuple[SymInt, Any, sympy.Integer]:
    """A size that nobody knows, with its symbol; `hint` stands for it where one is needed.

    The hint is given back as the number that expressions in the symbol want.
    """
    symbol = _make_symbol(_SymT.SIZE, len(environment.var_to_range), positive=True, integer=True)
    environment.var_to_range[symbol] = environment._default_value_range(True)
    environment.backed_var_to_val[symbol] = sympy.Integer(hint)
    node = _SizeNode(symbol, environment, int, hint)
    size = SymInt(node)  # type: ignore[no-untyped-call]
    return size, symbol, sympy.Integer(hint)


def length_terms(size: SymInt | SymFloat) -> tuple[Any, tuple[Any, ...]]:
    """What a symbolic number is, as an expression of sympy, and the symbols in it."""
    expression = size.node.expr
    return expression, tuple(sorted(expression.free_symbols, key=str))


def flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    return tree_flatten(tree)


def flatten_with_paths(tree: Any, root: str) -> tuple[list[tuple[str, Any]], TreeSpec]:
    """Leaves with their paths, as in `batch['ids']` or `batch[0]`; a lone leaf is just `batch`."""
    leaves, spec = tree_flatten_with_path(tree)
    return [(root + keystr(path), leaf) for path, leaf in leaves], spec
