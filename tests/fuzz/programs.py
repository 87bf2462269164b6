"""Random small models: chains and joins of ops, of shapes that seldom divide.

A recipe is plain numbers. `grow` turns it into concrete ops by running them
once, so that every recipe is a legal model; a shorter recipe is a smaller one,
which is what a failure is shrunk by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meshwright.task import Task

Apply = Callable[..., Tensor]


@dataclass(frozen=True)
class Step:
    """One op: which earlier values it takes, the shapes of its own parameters, what it does."""

    name: str
    takes: tuple[int, ...]
    parameters: tuple[tuple[int, ...], ...]
    apply: Apply
    buffers: int = 0


@dataclass
class Draft:
    """What an op of the menu is offered: a value, further ones of the same shape, and chance."""

    x: Tensor
    index: int
    values: Sequence[Tensor]
    chance: Random
    parameters: list[tuple[int, ...]] = field(default_factory=list)
    takes: list[int] = field(default_factory=list)

    def parameter(self, *shape: int) -> None:
        self.parameters.append(shape)

    def dim(self) -> int:
        return self.chance.randrange(self.x.dim())

    def size(self, most: int = 7) -> int:
        return self.chance.randint(1, most)

    def another(self, fits: Callable[[Tensor], bool]) -> bool:
        """Take a second operand that fits, if there is one."""
        options = [k for k, y in enumerate(self.values) if fits(y)]
        if options:
            self.takes.append(self.chance.choice(options))
        return bool(options)


Offer = Callable[[Draft], Apply | None]
MENU: dict[str, Offer] = {}


def offer(function: Offer) -> Offer:
    MENU[function.__name__] = function
    return function


def _pointwise(name: str, function: Apply) -> None:
    MENU[name] = lambda d: function


for _name, _function in (
    ("tanh", torch.tanh), ("gelu", F.gelu), ("silu", F.silu), ("sigmoid", torch.sigmoid),
    ("softplus", F.softplus), ("square", torch.square), ("negate", torch.neg),
    ("clamp", lambda x: x.clamp(-1.0, 1.5)), ("double", lambda x: x.double().float()),
    ("detached", lambda x: x * x.detach()), ("cosine", torch.cos),
):  # fmt: skip
    _pointwise(_name, _function)


@offer
def linear(d: Draft) -> Apply | None:
    out = d.size(9)
    d.parameter(out, d.x.shape[-1])
    d.parameter(out)
    return F.linear


@offer
def linear_without_bias(d: Draft) -> Apply | None:
    d.parameter(d.size(9), d.x.shape[-1])
    return F.linear


@offer
def scale_and_shift(d: Draft) -> Apply | None:
    shape = tuple(1 if d.chance.random() < 0.4 else size for size in d.x.shape)
    d.parameter(*shape)
    d.parameter(d.x.shape[-1])
    return lambda x, scale, shift: x * scale + shift


@offer
def einsum_with_weight(d: Draft) -> Apply | None:
    """Contract a random dim with a weight, whose new dim takes its place."""
    dim = d.dim()
    d.parameter(d.x.shape[dim], d.size())
    return lambda x, w: torch.tensordot(x, w, ([dim], [0])).movedim(-1, dim)


@offer
def softmax(d: Draft) -> Apply | None:
    dim = d.dim()
    return lambda x: torch.softmax(x, dim)


@offer
def log_softmax(d: Draft) -> Apply | None:
    dim = d.dim()
    return lambda x: torch.log_softmax(x, dim)


@offer
def layer_norm(d: Draft) -> Apply | None:
    tail = d.chance.randint(1, d.x.dim())
    shape = tuple(d.x.shape[-tail:])
    if math.prod(shape) < 3:
        return None
    d.parameter(*shape)
    return lambda x, weight: F.layer_norm(x, shape, weight)


@offer
def rms_norm(d: Draft) -> Apply | None:
    dim = d.dim()
    return lambda x: x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 0.1)


@offer
def batch_norm(d: Draft) -> Apply | None:
    if d.x.dim() < 2 or d.x.numel() // d.x.shape[1] < 4:
        return None
    d.parameter(d.x.shape[1])
    return lambda x, weight: F.batch_norm(x, None, None, weight, training=True, eps=0.1)


@offer
def group_norm(d: Draft) -> Apply | None:
    if d.x.dim() < 3 or d.x[0].numel() < 6:
        return None
    groups = d.chance.choice([g for g in (1, 2, 3) if d.x.shape[1] % g == 0])
    if d.x[0].numel() // groups < 3:
        return None
    d.parameter(d.x.shape[1])
    return lambda x, weight: F.group_norm(x, groups, weight, eps=0.1)


@offer
def permute(d: Draft) -> Apply | None:
    order = d.chance.sample(range(d.x.dim()), d.x.dim())
    return lambda x: x.permute(order)


@offer
def merge_dims(d: Draft) -> Apply | None:
    if d.x.dim() < 2:
        return None
    first = d.chance.randrange(d.x.dim() - 1)
    return lambda x: x.flatten(first, first + 1)


@offer
def split_dim(d: Draft) -> Apply | None:
    dim = d.dim()
    size = d.x.shape[dim]
    divisors = [n for n in range(2, size) if size % n == 0]
    if not divisors or d.x.dim() > 4:
        return None
    outer = d.chance.choice(divisors)
    return lambda x: x.unflatten(dim, (outer, size // outer))


@offer
def part_of_a_dim(d: Draft) -> Apply | None:
    dim = d.dim()
    size = d.x.shape[dim]
    start = d.chance.randrange(size)
    count = d.chance.randint(1, size - start)
    return lambda x: x.narrow(dim, start, count)


@offer
def every_other(d: Draft) -> Apply | None:
    dim = d.dim()
    start = d.chance.randrange(min(2, d.x.shape[dim]))
    return lambda x: x.movedim(dim, 0)[start::2].movedim(0, dim)


@offer
def halves_gated(d: Draft) -> Apply | None:
    dim = d.dim()
    if d.x.shape[dim] % 2:
        return None

    def apply(x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim)
        return left * torch.sigmoid(right)

    return apply


@offer
def sum_over(d: Draft) -> Apply | None:
    dim, keep = d.dim(), d.chance.random() < 0.5
    return (lambda x: x.sum(dim, keepdim=keep)) if keep or d.x.dim() > 1 else None


@offer
def mean_over(d: Draft) -> Apply | None:
    dim, keep = d.dim(), d.chance.random() < 0.5
    return (lambda x: x.mean(dim, keepdim=keep)) if keep or d.x.dim() > 1 else None


@offer
def maximum_over(d: Draft) -> Apply | None:
    dim = d.dim()
    return lambda x: x.amax(dim, keepdim=True)


@offer
def logsumexp_over(d: Draft) -> Apply | None:
    dim = d.dim()
    return lambda x: x.logsumexp(dim, keepdim=True)


@offer
def variance_over(d: Draft) -> Apply | None:
    dim = d.dim()
    return (lambda x: x.var(dim, keepdim=True)) if d.x.shape[dim] > 1 else None


@offer
def running_sum(d: Draft) -> Apply | None:
    dim = d.dim()
    return lambda x: x.cumsum(dim) * 0.3


@offer
def flip(d: Draft) -> Apply | None:
    dim = d.dim()
    return lambda x: x.flip(dim)


@offer
def roll(d: Draft) -> Apply | None:
    dim = d.dim()
    return lambda x: x.roll(1, dim)


@offer
def pad(d: Draft) -> Apply | None:
    left, right = d.chance.randrange(3), d.chance.randrange(3)
    return lambda x: F.pad(x, (left, right), value=0.5)


@offer
def new_dim_expanded(d: Draft) -> Apply | None:
    if d.x.dim() > 3:
        return None
    dim, count = d.chance.randint(0, d.x.dim()), d.size(4)

    def apply(x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape.insert(dim, count)
        return x.unsqueeze(dim).expand(shape)

    return apply


@offer
def pick_rows(d: Draft) -> Apply | None:
    dim, count = d.dim(), d.size()
    picked = [d.chance.randrange(d.x.shape[dim]) for _ in range(count)]
    return lambda x: x.index_select(dim, torch.tensor(picked))


@offer
def pick_by_mask(d: Draft) -> Apply | None:
    dim = d.dim()
    size = d.x.shape[dim]
    kept = torch.tensor([d.chance.random() < 0.6 for _ in range(size)])
    shape = [1] * d.x.dim()
    shape[dim] = size
    mask = kept.tolist()
    return lambda x: x.masked_fill(~torch.tensor(mask).view(shape), -0.5)


@offer
def add_rows(d: Draft) -> Apply | None:
    dim, rows = d.dim(), d.size(4)
    to = [d.chance.randrange(rows) for _ in range(d.x.shape[dim])]

    def apply(x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[dim] = rows
        return x.new_zeros(shape).index_add(dim, torch.tensor(to), x)

    return apply


@offer
def look_up(d: Draft) -> Apply | None:
    """An embedding of fixed tokens, one for each place of the first two dims, added."""
    rows = d.size(9)
    lead = tuple(d.x.shape[:-1])
    tokens = [d.chance.randrange(rows) for _ in range(math.prod(lead))]
    d.parameter(rows, d.x.shape[-1])
    return lambda x, table: x + F.embedding(torch.tensor(tokens).view(lead), table)


@offer
def convolve(d: Draft) -> Apply | None:
    spatial = d.x.dim() - 2
    if spatial not in (1, 2):
        return None
    kernel, stride = d.chance.choice([1, 2, 3]), d.chance.choice([1, 2])
    if min(d.x.shape[2:]) + 2 < kernel:
        return None
    groups = d.chance.choice([1, d.x.shape[1]])
    out = groups * d.size(3)
    d.parameter(out, d.x.shape[1] // groups, *[kernel] * spatial)
    d.parameter(out)
    run = F.conv1d if spatial == 1 else F.conv2d
    return lambda x, w, b: run(x, w, b, stride=stride, padding=1, groups=groups)


@offer
def pool(d: Draft) -> Apply | None:
    if d.x.dim() != 4 or min(d.x.shape[2:]) < 2:
        return None
    run = d.chance.choice([F.max_pool2d, F.avg_pool2d])
    return lambda x: run(x, 2)


@offer
def upsample(d: Draft) -> Apply | None:
    if d.x.dim() != 4 or d.x.numel() > 400:
        return None
    mode = d.chance.choice(["nearest", "bilinear"])
    return lambda x: F.interpolate(x, scale_factor=2, mode=mode)


@offer
def attention(d: Draft) -> Apply | None:
    if d.x.dim() not in (3, 4):
        return None
    causal = d.chance.random() < 0.5
    d.parameter(d.x.shape[-1])

    def apply(x: Tensor, scale: Tensor) -> Tensor:
        q = x if x.dim() == 4 else x.unsqueeze(1)
        made = F.scaled_dot_product_attention(q, q * scale, torch.tanh(q), is_causal=causal)
        return made if x.dim() == 4 else made.squeeze(1)

    return apply


@offer
def dropout(d: Draft) -> Apply | None:
    return lambda x: F.dropout(x, 0.3)


@offer
def product_with_itself(d: Draft) -> Apply | None:
    if d.x.dim() < 2:
        return None
    return lambda x: x @ x.transpose(-1, -2) * 0.2


@offer
def join_sum(d: Draft) -> Apply | None:
    return (lambda x, y: x + y) if d.another(lambda y: y.shape == d.x.shape) else None


@offer
def join_broadcast(d: Draft) -> Apply | None:
    def fits(y: Tensor) -> bool:
        try:
            return torch.broadcast_shapes(y.shape, d.x.shape).numel() < 2000
        except RuntimeError:
            return False

    return (lambda x, y: x * torch.tanh(y)) if d.another(fits) else None


@offer
def join_product(d: Draft) -> Apply | None:
    def fits(y: Tensor) -> bool:
        return y.dim() == 2 <= d.x.dim() and y.shape[0] == d.x.shape[-1]

    return torch.matmul if d.another(fits) else None


@offer
def join_cat(d: Draft) -> Apply | None:
    dim = d.dim()

    def fits(y: Tensor) -> bool:
        one, other = list(d.x.shape), list(y.shape)
        return (
            len(one) == len(other) and one[:dim] + one[dim + 1 :] == other[:dim] + other[dim + 1 :]
        )

    return (lambda x, y: torch.cat((x, y), dim)) if d.another(fits) else None


@offer
def join_stack(d: Draft) -> Apply | None:
    if d.x.dim() > 3 or not d.another(lambda y: y.shape == d.x.shape):
        return None
    return lambda x, y: torch.stack((x, y), 1)


@offer
def largest(d: Draft) -> Apply | None:
    dim = d.dim()
    k = d.chance.randint(1, d.x.shape[dim])
    return lambda x: x.topk(k, dim).values


@offer
def where_positive(d: Draft) -> Apply | None:
    return lambda x: torch.where(x > 0, x, 0.1 * x)


NAMES = tuple(sorted(MENU))
MOST_ELEMENTS = 3000


def grow(shape: Sequence[int], recipe: Sequence[tuple[int, int]]) -> tuple[Step, ...]:
    """Concrete ops for a recipe of (op, seed) on an input of `shape`; what does not fit is left."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        values = [torch.randn(*shape)]
        steps: list[Step] = []
        for number, seed in recipe:
            chance = Random(seed)
            # Mostly the latest value, so that chains grow deep.
            index = len(values) - 1 if chance.random() < 0.7 else chance.randrange(len(values))
            if not values[index].dim():
                continue
            draft = Draft(values[index], index, values, chance)
            apply = MENU[NAMES[number]](draft)
            if apply is None:
                continue
            takes = (index, *draft.takes)
            made = apply(*(values[k] for k in takes), *(torch.randn(s) for s in draft.parameters))
            if not 0 < made.numel() <= MOST_ELEMENTS or not bool(made.isfinite().all()):
                continue
            values.append(made)
            steps.append(Step(NAMES[number], takes, tuple(draft.parameters), apply))
    return tuple(steps)


class Grown(nn.Module):
    """The model of some steps; its loss looks at every value that nothing else uses."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps = steps
        self.first = nn.Parameter(torch.ones(()))
        self.own = nn.ModuleList(
            nn.ParameterList([torch.randn(shape) * 0.7 for shape in step.parameters])
            for step in steps
        )

    def forward(self, x: Tensor) -> Tensor:
        values = [x * self.first]
        used = set()
        for step, own in zip(self.steps, self.own, strict=True):
            values.append(step.apply(*(values[k] for k in step.takes), *own))
            used.update(step.takes)
        ends = [value for k, value in enumerate(values) if k not in used]
        loss = torch.zeros(())
        for value in ends:
            loss = loss + value.square().mean() + value.tanh().mean()
        return loss


def task(shape: Sequence[int], steps: Sequence[Step]) -> Task:
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(*shape, generator=generator)
    return Task(lambda: Grown(steps), lambda model, x: model(x), batch)
