"""Autograd's graph of a captured step as ops among the forward's.

What a backward does follows from this graph and from the ops whose nodes are in it:
two models with equal ones have equal backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from meshwright.program.rolled import Irregular
from meshwright.program.types import Argument, Op, Program, Ref, Source, Value
from meshwright.torch_private import GraphNode, autograd_graph

_TARGET = "autograd."
_HOOKS = (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)
_DEPTH = 3  # of tuples, lists and dicts within an attribute


@dataclass(frozen=True)
class Graph:
    """nodes: in the order in which they were made. leaves: paths of trained parameters, by
    node. hooks: whether the user's code hung functions on gradients, which no op shows."""

    nodes: Sequence[GraphNode]
    leaves: Mapping[int, str] | None = None
    hooks: bool = False


class HooksNoted(TorchFunctionMode):
    """Notes whether a hook is registered on a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.met = self.met or func in _HOOKS
        return func(*args, **(kwargs or {}))


def graph_of(loss: Tensor, trainable: Mapping[str, Tensor], hooks: bool) -> Graph:
    paths = {id(tensor): path for path, tensor in trainable.items()}
    nodes = autograd_graph(loss)
    leaves = {
        number: paths.get(id(node.leaf), "")
        for number, node in enumerate(nodes)
        if node.leaf is not None
    }
    described = [node._replace(leaf=None, function=_attributes(node.function)) for node in nodes]
    return Graph(described, leaves, hooks)


def with_graph(program: Program, sequences: Sequence[int], graph: Graph) -> Program:
    """The Program with a node of the graph as an op before the forward op that it is made for."""
    assert graph.leaves is not None
    by_path = {item.path: item.value for item in program.inputs}
    values = dict(program.values)
    names: dict[int, str] = {}
    waiting: list[tuple[int, Op]] = []
    for number, node in enumerate(graph.nodes):
        if number in graph.leaves:
            names[number] = by_path.get(graph.leaves[number], "")
            continue
        name = names[number] = f"autograd/{node.name.rpartition('::')[2]}.{number}"
        values[name] = Value(name, (), "bool", name)
        edges: list[Argument] = []
        for to, place in node.edges:
            if to is not None and to not in names:
                raise Irregular("autograd's graph leads back to a later op")
            known = names[to] if to is not None else ""
            edges.append((Ref(known) if known else None, place))
        function = () if node.function is None else (("function", node.function),)
        op = Op(name, _TARGET + node.name, tuple(edges), function, (name,), False, "forward",
                Source(""))  # fmt: skip
        waiting.append((node.sequence, op))
    ops: list[Op] = []
    next_node = 0
    for op, sequence in zip(program.ops, sequences, strict=True):
        while next_node < len(waiting) and (
            op.phase == "backward" or waiting[next_node][0] < sequence
        ):
            ops.append(waiting[next_node][1])
            next_node += 1
        ops.append(op)
    ops += [op for _, op in waiting[next_node:]]
    return replace(program, values=values, ops=tuple(ops))


def without_graph(program: Program) -> Program:
    ops = tuple(op for op in program.ops if not of_graph(op))
    nodes = {name for op in program.ops if of_graph(op) for name in op.results}
    values = {name: value for name, value in program.values.items() if name not in nodes}
    return replace(program, ops=ops, values=values)


def of_graph(op: Op) -> bool:
    return op.target.startswith(_TARGET)


def _attributes(function: Any) -> str | None:
    """The attributes of a user's autograd function, for telling two calls of it apart."""
    if function is None:
        return None
    shown = {key: _shown(item, _DEPTH) for key, item in sorted(vars(function).items())}
    kind = type(function)
    return f"{kind.__module__}.{kind.__qualname__} {shown}"


def _shown(item: Any, depth: int) -> str:
    if item is None or isinstance(item, (bool, int, float, str, complex)):
        return repr(item)
    if isinstance(item, Tensor):
        return f"{item.dtype} {tuple(item.shape)}"
    if isinstance(item, (tuple, list)) and depth:
        return str([_shown(part, depth - 1) for part in item])
    if isinstance(item, dict) and depth:
        return str({repr(key): _shown(part, depth - 1) for key, part in item.items()})
    code = getattr(getattr(item, "__func__", item), "__code__", None)
    if isinstance(code, CodeType):
        return f"{code.co_filename}:{code.co_firstlineno}"
    return type(item).__qualname__
