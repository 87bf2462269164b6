"""Rows of published measurements: what is read, and what is said about rows that make no sense."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from benchmarks.published.rows import COLUMNS, RowError, TableError, parse_row, read_rows
from hypothesis import given
from hypothesis import strategies as st
from published_table import GOOD, write

NUMBERS = [
    name
    for name in COLUMNS
    if name.startswith(("n_", "step", "tokens", "tflops", "mfu", "peak"))
    or name
    in {
        "layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "seq_len", "gpus_per_node", "dp",
        "tp", "cp", "pp", "vpp", "ep", "micro_batch", "global_batch",
    }
]  # fmt: skip


def changed(**cells: str) -> dict[str, str]:
    return GOOD | cells


def test_a_row_is_read_by_its_columns_types() -> None:
    row = parse_row(7, GOOD)
    assert (row.line, row.layers, row.step_time_s, row.peak_mem_gib) == (7, 24, 1.5, 20.0)
    assert (row.sp, row.zero_or_fsdp, row.flash_attention) == (False, 1, False)
    assert row.kv_heads is None
    assert row.compile is None
    assert row.precision == "fp16"


def test_whole_numbers_may_have_a_point() -> None:
    """As programs write columns of whole numbers with gaps."""
    row = parse_row(2, changed(layers="24.0", sp="0.0", zero_or_fsdp="1.0"))
    assert (row.layers, row.sp, row.zero_or_fsdp) == (24, False, 1)


def test_plain_data_parallelism_is_stage_0_and_empty_is_unknown() -> None:
    assert parse_row(2, changed(zero_or_fsdp="none")).zero_or_fsdp == 0
    assert parse_row(2, changed(zero_or_fsdp="")).zero_or_fsdp is None


def test_a_derived_step_time_is_found_in_the_notes() -> None:
    row = parse_row(2, changed(notes="PP=2; derived step_time_s=5.721 (=GBS*seq/...)"))
    assert row.derived_step_time_s == 5.721


@pytest.mark.parametrize(
    ("cells", "field", "words"),
    [
        ({"dp": "8"}, "n_gpus", "dp 8 * tp 2 * cp 1 * pp 2 = 32"),
        ({"dp": "", "tp": "3"}, "n_gpus", "a multiple of tp 3 * cp 1 * pp 2 = 6"),
        ({"ep": "3"}, "ep", "a divisor of dp 4 * cp 1 * tp 2 = 8"),
        ({"layers": "4", "vpp": "4"}, "layers", "pp 2 * vpp 4 = 8"),
        ({"pp": "1", "dp": "8", "vpp": "2"}, "vpp", "1 or nothing beside pp 1"),
        ({"tp": "1", "dp": "8", "sp": "1"}, "sp", "0 or nothing beside tp 1"),
        ({"global_batch": "63"}, "global_batch", "a multiple of dp 4 * micro_batch 2 = 8"),
        ({"kv_heads": "3"}, "kv_heads", "a divisor of the 16 heads"),
        ({"zero_or_fsdp": "4"}, "zero_or_fsdp", "none, 0, 1, 2, 3"),
        ({"activation_recompute": "some"}, "activation_recompute", "none, selective, full, op"),
        ({"flash_attention": "yes"}, "flash_attention", "0, 1"),
        ({"mfu": "41"}, "mfu", "a share"),
        ({"layers": "2.5"}, "layers", "a whole number"),
        ({"notes": "derived step_time_s=-1"}, "notes: derived step_time_s", "above 0"),
    ],
)
def test_contradictions_name_line_field_and_what_was_expected(
    cells: dict[str, str], field: str, words: str
) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(31, changed(**cells))
    assert caught.value.line == 31
    assert caught.value.field == field
    assert "line 31" in str(caught.value)
    assert field in str(caught.value)
    assert words in str(caught.value)


def test_embedding_and_loss_may_count_as_layers() -> None:
    row = parse_row(2, changed(layers="126", pp="16", vpp="8", dp="4", n_gpus="128"))
    assert row.layers == 126


@given(
    name=st.sampled_from(NUMBERS),
    text=st.one_of(
        st.integers(max_value=0).map(str),
        st.floats(max_value=0, allow_nan=False).map(str),
        st.sampled_from(["nan", "inf", "-inf", "1e", "0x10", "1,5", "eight", "٣", "1e400"]),
    ),
)
def test_no_number_that_makes_no_sense_gets_through(name: str, text: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(5, changed(**{name: text}))
    assert caught.value.field == name
    assert repr(text) in str(caught.value)


@given(name=st.sampled_from(COLUMNS), text=st.text(max_size=12))
def test_any_text_in_any_cell_is_a_row_or_a_named_error(name: str, text: str) -> None:
    try:
        row = parse_row(5, changed(**{name: text}))
    except RowError as error:
        said = error.line, error.expected
    else:
        said = None
    if said is not None:
        assert said[0] == 5
        assert said[1]
        return
    numbers = [getattr(row, item) for item in NUMBERS]
    assert all(item is None or (item > 0 and math.isfinite(item)) for item in numbers)
    degrees = (row.dp, row.tp, row.cp, row.pp)
    if None not in degrees and row.n_gpus is not None:
        assert math.prod(degrees) == row.n_gpus  # type: ignore[arg-type]


def test_good_rows_are_read_beside_broken_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "some.csv", GOOD, changed(dp="5"), changed(notes="two\nlines"), GOOD)
    rows, errors = read_rows(path)
    assert [row.line for row in rows] == [2, 4, 6]
    assert [error.line for error in errors] == [3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("layers,hidden\n1,2\n", "has no column source"),
        (",".join((*COLUMNS, "layers")) + "\n", "has the column layers twice"),
        (",".join(COLUMNS) + "\n1,2,3\n", "line 2: 3 cells under a header of"),
        (",".join(COLUMNS) + '\n"open', "line 2"),
    ],
)
def test_a_file_that_is_no_such_table(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(TableError, match=r"bad\.csv") as caught:
        read_rows(path)
    assert words in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="can't be read"):
        read_rows(tmp_path / "none.csv")
    with pytest.raises(TableError, match="can't be read"):
        read_rows(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(TableError, match="no text in UTF-8"):
        read_rows(tmp_path / "binary.csv")
