"""How far the search's plans of small programs are from the best that per-op layouts can give.

    python benchmarks/oracle.py [--json] [--only mlp] [--budget-seconds 20] [--oracle-seconds 60]
                                [--draws 12]

For each case: the plan that `auto` finds, and the oracle's, which chooses for every op by
itself along which factor one axis over all devices cuts it (`meshwright.search.oracle`).
Both are simulated by the same simulator, with collectives merged. `gap` is how much longer
the search's plan takes, as a share of the oracle's time. It is below 0 where the search finds
what the oracle does not cover: two axes, or parameters gathered more often than once a step.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import ceil
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from meshwright.cluster.mesh import Mesh
from meshwright.cluster.parse import parse_cluster
from meshwright.cost.table import table_for
from meshwright.lower.alone import Alone
from meshwright.lower.lower import lower
from meshwright.model import Model
from meshwright.planner import plan
from meshwright.search.oracle_solve import OracleError, solve
from meshwright.simulate.step import simulate
from meshwright.task import Task
from meshwright.zoo.reference import load_task

WITHIN = 0.01

ZOO: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("zoo:mlp", {"features": "256", "hidden": "1024", "layers": "2", "global_batch": "64"}),
    ("zoo:mlp", {"features": "1024", "hidden": "8192", "layers": "1", "global_batch": "16"}),
    ("zoo:mlp", {"features": "64", "hidden": "128", "layers": "3", "global_batch": "4096"}),
    ("zoo:gpt", {"layers": "1", "seq_len": "64", "global_batch": "8"}),
    ("zoo:gpt", {"layers": "2", "width": "128", "heads": "4", "seq_len": "32",
                 "global_batch": "8"}),
    ("zoo:gpt", {"layers": "1", "width": "1024", "heads": "16", "seq_len": "128",
                 "global_batch": "8"}),
    ("zoo:convnet", {}),
    ("zoo:convnet", {"global_batch": "256"}),
    ("zoo:ncf", {}),
)  # fmt: skip
CLUSTERS = ("local:4", "1x8:h100-sxm", "4x1:a100-40g-pcie")


class Drawn(nn.Module):
    """Linear layers of drawn widths, with activations, norms and residuals; or an autoencoder."""

    def __init__(self, chance: Random) -> None:
        super().__init__()
        depth = chance.randint(1, 4)
        widths = [2 ** chance.randint(5, 12) for _ in range(depth + 1)]
        if chance.random() < 0.4:  # an autoencoder
            widths = [*widths, *widths[-2::-1]]
        self.widths = widths
        self.examples = 2 ** chance.randint(3, 11)
        self.layers = nn.ModuleList(
            nn.Linear(a, b, bias=chance.random() < 0.7) for a, b in itertools.pairwise(widths)
        )
        norms = [chance.random() < 0.3 for _ in self.layers]
        self.norms = nn.ModuleList(
            nn.LayerNorm(b) if norm else nn.Identity()
            for b, norm in zip(widths[1:], norms, strict=True)
        )
        self.acts = [chance.choice(("relu", "gelu", "tanh", "none")) for _ in self.layers]
        self.skips = [a == b and chance.random() < 0.7 for a, b in itertools.pairwise(widths)]

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm, act, skip in zip(
            self.layers, self.norms, self.acts, self.skips, strict=True
        ):
            y = norm(layer(x))
            y = y if act == "none" else getattr(torch.nn.functional, act, torch.tanh)(y)
            x = x + y if skip else y
        return x


def drawn(seed: int) -> Task:
    model = Drawn(Random(seed))
    x = torch.zeros(model.examples, model.widths[0])
    target = torch.zeros(model.examples, model.widths[-1])

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.nn.functional.mse_loss(model(batch[0]), batch[1])

    return Task(model=lambda: Drawn(Random(seed)), loss=loss, batch=(x, target),
                name=f"drawn {seed}")  # fmt: skip


@dataclass(frozen=True)
class Case:
    title: str
    cluster: str
    make: Callable[[], Task]


def cases(draws: int) -> Iterator[Case]:
    for cluster in CLUSTERS:
        for name, options in ZOO:
            title = " ".join((name, *(f"{key}={value}" for key, value in options.items())))
            yield Case(title, cluster, partial(load_task, name, dict(options)))
        for seed in range(draws):
            yield Case(f"drawn {seed}", cluster, partial(drawn, seed))


def measure(case: Case, model: Model, budget_s: float, oracle_s: float) -> dict[str, Any]:
    """One case; times in seconds."""
    cluster = parse_cluster(case.cluster)
    started = time.perf_counter()
    found = plan(model.task, cluster, "auto", model=model, budget_s=budget_s, microbatches=1)
    search_s = time.perf_counter() - started
    started = time.perf_counter()
    analysis = model.whole(1)
    mesh = Mesh((("data", cluster.size),))
    alone = Alone(analysis, mesh, table_for(cluster))
    problem = alone.problem()
    ops = {"ops": len(analysis.program.ops), "forms": sum(len(op.forms) for op in problem.ops)}
    solution = solve(problem, seconds=oracle_s)
    oracle_took_s = time.perf_counter() - started
    lowered = lower(analysis, alone.assignment(solution.choice, problem), mesh.coordinate(0),
                    found.bucket_bytes)  # fmt: skip
    again = simulate(lowered, cluster, microbatches=1, optimizer="adamw", memory_curve=False)
    step_s, best_s = found.predicted.step_time_s, again.step_time_s
    return {
        **ops, "search_s": search_s, "oracle_s": oracle_took_s, "proved": solution.proved,
        "plan": found.strategy, "stopped": found.stopped, "step_s": step_s,
        "oracle_step_s": best_s, "off": solution.seconds / best_s - 1,
        "lower_bound_s": found.lower_bound_s, "gap": step_s / best_s - 1,
    }  # fmt: skip


def run(
    *,
    only: str = "",
    budget_s: float = 20.0,
    oracle_s: float = 60.0,
    draws: int = 12,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """All cases, and the share of those within 1%; what `--json` prints."""
    table: list[dict[str, Any]] = []
    models: dict[str, Model] = {}
    for case in cases(draws):
        if only not in f"{case.title} on {case.cluster}":
            continue
        where = {"case": case.title, "cluster": case.cluster}
        model = models.get(case.title)
        if model is None:
            model = models[case.title] = Model(case.make())
        try:
            item = {**where, **measure(case, model, budget_s, oracle_s)}
        except OracleError as error:
            table.append({**where, "unsolved": error.message})
            say(f"{case.title} on {case.cluster}: {error.message}")
            continue
        table.append(item)
        say(
            f"{case.title[:44]:44s} {case.cluster:18s} {item['step_s'] * 1e3:9.3f} ms "
            f"{item['oracle_step_s'] * 1e3:9.3f} ms {item['gap']:7.1%} "
            f"{item['search_s']:5.1f} s {item['oracle_s']:5.1f} s {item['plan']}"
            + ("" if item["proved"] else "  (oracle not proved)")
        )
    solved = [item for item in table if "gap" in item]
    near = sum(item["gap"] <= WITHIN for item in solved)
    share = near / len(solved) if solved else None
    gaps = sorted(item["gap"] for item in solved)
    spread = {
        name: gaps[ceil(part * len(gaps)) - 1] if gaps else None
        for name, part in (("median", 0.5), ("gap_95", 0.95), ("worst", 1.0))
    }
    say(f"{near} of {len(solved)} within {WITHIN:.0%} of the oracle")
    if gaps:
        say(", ".join(f"{name} {gap:.1%}" for name, gap in spread.items()))
    return {"cases": len(table), "solved": len(solved), "within": near, "share": share, **spread,
            "table": table}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="one object on standard output")
    parser.add_argument("--only", default="", help="cases whose title holds this")
    parser.add_argument("--budget-seconds", type=float, default=20, help="of each search")
    parser.add_argument("--oracle-seconds", type=float, default=60, help="of each solution")
    parser.add_argument("--draws", type=int, default=12, help="random networks a cluster")
    given = parser.parse_args()

    def say(line: str) -> None:
        print(line, file=sys.stderr if given.json else sys.stdout, flush=True)

    found = run(
        only=given.only, budget_s=given.budget_seconds, oracle_s=given.oracle_seconds,
        draws=given.draws, say=say,
    )  # fmt: skip
    if given.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
