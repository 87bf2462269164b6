"""Reads files shaped like `measurements.csv`, a row at a time, and checks what a row says.

An empty cell means that the source does not say, and becomes None. A cell that is no value of
its column, and cells that contradict each other, make a `RowError`, which names the line of the
file, the field, what was found there and what was expected.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from meshwright.errors import UsageError

SHARDING = {"none": 0, "0": 0, "1": 1, "2": 2, "3": 3}
RECOMPUTATION = ("none", "selective", "full", "op")
_WHOLE = re.compile(r"([0-9]+)(?:\.0*)?")  # 8.0, as programs write whole columns with gaps
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LARGEST = 10**15  # of any whole number; larger ones are slips


class TableError(UsageError):
    """A file that can't be read as a table of measurements at all."""

    kind = "table"


class RowError(UsageError):
    """One row that makes no sense. `line` is its line in the file, the header being line 1."""

    kind = "row"

    def __init__(self, line: int, field: str, got: str, expected: str) -> None:
        super().__init__(f"line {line}: {field} is {got}; expected {expected}.")
        self.line, self.field, self.got, self.expected = line, field, got, expected


@dataclass(frozen=True)
class Row:
    """One published configuration and what was measured; None where the source does not say.

    `line` is where it begins in the file. `zero_or_fsdp` is a ZeRO stage, 3 for FSDP.
    `step_time_s`, `tokens_per_s_per_gpu`, `tflops_per_gpu` and `mfu` (a share of 1) are what the
    source printed; `derived_step_time_s` is what the notes derive from them. `peak_mem_gib` is
    of the fullest device.
    """

    line: int
    source: str
    url_or_repo_path: str
    model: str
    n_params_b: float | None
    layers: int | None
    hidden: int | None
    heads: int | None
    kv_heads: int | None
    ffn: int | None
    vocab: int | None
    seq_len: int | None
    arch: str
    gpu: str
    n_gpus: int | None
    gpus_per_node: int | None
    dp: int | None
    tp: int | None
    sp: bool | None
    cp: int | None
    pp: int | None
    vpp: int | None
    ep: int | None
    zero_or_fsdp: int | None
    micro_batch: int | None
    global_batch: int | None
    activation_recompute: str | None
    precision: str | None
    offload: str | None
    flash_attention: bool | None
    compile: bool | None
    step_time_s: float | None
    tokens_per_s_per_gpu: float | None
    tflops_per_gpu: float | None
    mfu: float | None
    peak_mem_gib: float | None
    notes: str
    derived_step_time_s: float | None = None

    @property
    def label(self) -> str:
        return f"line {self.line} ({self.model or 'unnamed'})"


_TYPES: Mapping[str, Any] = {
    name: hint for name, hint in get_type_hints(Row).items() if name != "return"
}
COLUMNS = tuple(
    field.name for field in fields(Row) if field.name not in ("line", "derived_step_time_s")
)
_DERIVED = re.compile(r"derived step_time_s=([0-9.eE+-]+)")


def read_rows(path: str | Path) -> tuple[list[Row], list[RowError]]:
    """The rows that make sense, in order, and what is wrong with the others.

    Raises TableError for a file that is no such table: not there, no text, columns missing or
    there twice, a row with more or fewer cells than the header.
    """
    table = _table(Path(path))
    rows, errors = [], []
    for line, cells in table:
        try:
            rows.append(parse_row(line, cells))
        except RowError as error:
            errors.append(error)
    return rows, errors


def _table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The cells of each row with the line on which it begins."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or str(error)
        raise TableError(
            f"{path} can't be read: {reason}.", "Give the path of a CSV file."
        ) from None
    except UnicodeDecodeError:
        raise TableError(f"{path} is no text in UTF-8.", "Give a CSV file.") from None
    found: list[tuple[int, dict[str, str]]] = []
    header: list[str] | None = None
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise TableError(
                f"{path}, line {reader.line_num}: {error}.", "Mend the CSV there."
            ) from None
        if cells is None:
            break
        if header is None:
            header = _header(path, cells)
        elif any(cell.strip() for cell in cells):
            if len(cells) != len(header):
                raise TableError(
                    f"{path}, line {line}: {len(cells)} cells under a header of {len(header)}.",
                    "Each row needs a cell for each column; quote cells that hold a comma.",
                )
            found.append((line, dict(zip(header, cells, strict=True))))
        line = reader.line_num + 1
    if header is None:
        raise TableError(
            f"{path} is empty.", f"Its first line names columns: {', '.join(COLUMNS)}."
        )
    return found


def _header(path: Path, cells: list[str]) -> list[str]:
    header = [cell.strip() for cell in cells]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise TableError(
            f"{path} has no column {', '.join(missing)}.",
            f"Its first line names columns: {', '.join(COLUMNS)}.",
        )
    twice = [name for name in COLUMNS if header.count(name) > 1]
    if twice:
        raise TableError(f"{path} has the column {twice[0]} twice.", "Leave one of them out.")
    return header


def parse_row(line: int, cells: Mapping[str, str]) -> Row:
    """Raises RowError for the first cell that is no value of its column, or contradiction."""
    values: dict[str, Any] = {"line": line}
    for name in COLUMNS:
        values[name] = _value(line, name, cells[name].strip())
    row = Row(**values, derived_step_time_s=_derived(line, values["notes"]))
    _check(row)
    return row


def _value(line: int, name: str, text: str) -> Any:
    if name == "zero_or_fsdp":
        return _one_of(line, name, text, SHARDING, SHARDING)
    if name == "activation_recompute":
        return _one_of(line, name, text, {item: item for item in RECOMPUTATION}, RECOMPUTATION)
    wanted = _TYPES[name]
    if wanted is str:
        return text
    if not text:
        return None
    kind = next(item for item in get_args(wanted) if item is not type(None))
    if kind is bool:
        return _one_of(line, name, text, {"0": False, "1": True}, ("0", "1"))
    if kind is int:
        return _whole(line, name, text)
    if kind is float:
        return _positive(line, name, text)
    return text


def _one_of(line: int, name: str, text: str, meanings: Mapping[str, Any], known: Any) -> Any:
    if not text:
        return None
    number = _WHOLE.fullmatch(text)
    said = number[1] if number else text.lower()
    if said not in meanings:
        raise RowError(line, name, repr(text), f"one of {', '.join(known)}, or nothing")
    return meanings[said]


def _whole(line: int, name: str, text: str) -> int:
    found = _WHOLE.fullmatch(text)
    if not found or not 0 < int(found[1]) < _LARGEST:
        raise RowError(line, name, repr(text), "a whole number of at least 1, or nothing")
    return int(found[1])


def _positive(line: int, name: str, text: str) -> float:
    number = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not (math.isfinite(number) and number > 0):
        raise RowError(line, name, repr(text), "a number above 0, or nothing")
    if name == "mfu" and number > 1:
        raise RowError(line, name, repr(text), "a share of at most 1")
    return number


def _derived(line: int, notes: str) -> float | None:
    found = _DERIVED.search(notes)
    return _positive(line, "notes: derived step_time_s", found[1]) if found else None


def _check(row: Row) -> None:
    """What one cell says against the others; nothing is checked against an empty cell."""
    degrees = {"dp": row.dp, "tp": row.tp, "cp": row.cp, "pp": row.pp}
    given = {name: size for name, size in degrees.items() if size is not None}
    product = math.prod(given.values())
    text = " * ".join(f"{name} {size}" for name, size in given.items())
    if row.n_gpus is not None:
        if len(given) == len(degrees) and product != row.n_gpus:
            raise RowError(row.line, "n_gpus", str(row.n_gpus), f"{text} = {product}")
        if row.n_gpus % product:
            raise RowError(row.line, "n_gpus", str(row.n_gpus), f"a multiple of {text} = {product}")
    if row.ep is not None and row.dp is not None and row.tp is not None and row.cp is not None:
        inside = row.dp * row.cp * row.tp
        if inside % row.ep:
            raise RowError(
                row.line, "ep", str(row.ep),
                f"a divisor of dp {row.dp} * cp {row.cp} * tp {row.tp} = {inside}, in which "
                "experts lie",
            )  # fmt: skip
    if row.sp and row.tp == 1:
        raise RowError(
            row.line, "sp", "1", "0 or nothing beside tp 1: it cuts what lies between tensor parts"
        )
    _check_pipeline(row)
    if row.global_batch is not None:
        part = (row.dp or 1) * (row.micro_batch or 1)
        if row.global_batch % part:
            raise RowError(
                row.line, "global_batch", str(row.global_batch),
                f"a multiple of dp {row.dp or 1} * micro_batch {row.micro_batch or 1} = {part}",
            )  # fmt: skip
    if row.kv_heads is not None and row.heads is not None and row.heads % row.kv_heads:
        raise RowError(
            row.line, "kv_heads", str(row.kv_heads), f"a divisor of the {row.heads} heads"
        )


def _check_pipeline(row: Row) -> None:
    if row.vpp is not None and row.vpp > 1 and row.pp == 1:
        raise RowError(row.line, "vpp", str(row.vpp), "1 or nothing beside pp 1")
    pieces = (row.pp or 1) * (row.vpp or 1)
    # Megatron can count the embedding and the loss as layers: 126 in 16 * 8 pieces is a layout.
    if row.layers is not None and row.layers + 2 < pieces:
        raise RowError(
            row.line, "layers", str(row.layers),
            f"at least pp {row.pp or 1} * vpp {row.vpp or 1} = {pieces}, less 2 for embedding "
            "and loss",
        )  # fmt: skip
