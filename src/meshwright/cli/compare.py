"""`meshwright compare`: named strategies side by side, beside what the search finds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from meshwright.cli import options as given
from meshwright.cli.output import Output
from meshwright.errors import MeshwrightError, NoPlanFits, StrategyError

if TYPE_CHECKING:
    from meshwright.plan.types import Plan

_MOST_COMPOSITIONS = 4


def compare(
    model: given.Model,
    option: given.Options = None,
    global_batch: given.GlobalBatch = None,
    seq_len: given.SeqLen = None,
    cluster: given.Cluster = None,
    mesh: given.Mesh = None,
    layout: given.Layout = None,
    forbid: given.Forbid = None,
    pin: given.Pin = None,
    microbatches: given.Microbatches = None,
    clip_norm: given.ClipNorm = None,
    optimizer: given.Optimizer = None,
    profile: given.Profile = None,
    no_calibrate: given.NoCalibrate = False,
    json: given.Json = False,
    debug: given.Debug = False,
) -> None:
    """Predict every named strategy, and what the search chooses."""
    from meshwright.cli.prepare import Request, make_plan, prepare

    with Output(json) as out:
        request = Request(
            model, option, global_batch, cluster, None, microbatches, clip_norm, optimizer,
            profile, no_calibrate,
            seq_len=seq_len, constraints=given.constraints(mesh, layout, forbid, pin),
        )  # fmt: skip
        prepared = prepare(request, out)
        found: dict[str, Plan | MeshwrightError] = {}
        for name in ("auto", *strategies(prepared.cluster.size)):
            try:
                found[name] = make_plan(prepared, out, name)
            except (StrategyError, NoPlanFits) as error:
                found[name] = error
        best = _best(found)
        _show(found, best, f"{prepared.task.name} on {prepared.cluster.text}", out)
        out.emit({"best": best, "strategies": [_row(name, item) for name, item in found.items()]})
    if best is None:
        first = found["auto"]
        assert isinstance(first, MeshwrightError)
        raise first


def strategies(devices: int) -> Iterator[str]:
    """Every named strategy, and compositions of two axes for so many devices."""
    yield "data"
    for stage in (1, 2, 3):
        yield f"zero={stage}"
    yield "tensor"
    pairs = [size for size in range(2, devices) if devices % size == 0]
    pairs.sort(key=lambda tensor: abs(tensor - devices / tensor))  # the squarest first
    for tensor in pairs[: _MOST_COMPOSITIONS // 2]:
        yield f"data={devices // tensor},tensor={tensor}"
        yield f"data={devices // tensor},tensor={tensor},zero=1"


def _best(found: dict[str, Plan | MeshwrightError]) -> str | None:
    """The fastest, the search's own choice where they are equal."""
    times = {
        name: item.predicted.step_time_s
        for name, item in found.items()
        if not isinstance(item, MeshwrightError)
    }
    return min(times, key=lambda name: times[name], default=None)


def _row(name: str, item: Plan | MeshwrightError) -> dict[str, Any]:
    from meshwright.cli.as_json import prediction_json

    if isinstance(item, MeshwrightError):
        return {
            "strategy": name, "fits": False, "kind": item.kind, "reason": item.message,
            "remedy": item.remedy,
        }  # fmt: skip
    chosen = {"chosen": item.strategy} if name == "auto" else {}
    return {"strategy": name, **chosen, "fits": True, "mesh": dict(item.mesh),
            "microbatches": item.microbatches, **prediction_json(item.predicted)}  # fmt: skip


def _show(
    found: dict[str, Plan | MeshwrightError], best: str | None, title: str, out: Output
) -> None:
    from rich.markup import escape

    from meshwright.cli.show import heading, indented, prediction_cells, predictions

    rows = predictions()
    reasons = []
    for name, item in found.items():
        if isinstance(item, MeshwrightError):
            reasons.append(f"{name}: {item.message}")
            rows.add_row("", escape(name), "-", "-", "-", "-", style="dim")
            continue
        rows.add_row(
            "*" if name == best else "", escape(name), *prediction_cells(item.predicted),
            style="bold green" if name == best else "",
        )  # fmt: skip
    out.print(heading(title), indented(rows))
    if best is not None:
        out.print("  * predicted fastest")
    auto = found["auto"]
    if not isinstance(auto, MeshwrightError):
        out.print(f"  auto chose {escape(auto.strategy)}")
    for reason in reasons:
        out.print(f"  {escape(reason)}")
