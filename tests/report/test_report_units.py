import pytest

from meshwright.report import units


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (75.5, "75.5 s"),
        (0.4123, "412 ms"),
        (0.0023, "2.30 ms"),
        (4.2e-6, "4.20 µs"),
        (5e-9, "5.00 ns"),
        (float("nan"), "not finite"),
    ],
)
def test_duration(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (300 << 20, "300 MiB"),
        (1 << 41, "2.00 TiB"),
    ],
)
def test_memory(size, text):
    assert units.memory(size) == text


@pytest.mark.parametrize(
    ("per_second", "text"),
    [(3.5, "3.50/s"), (4971, "4,971/s"), (49710, "49.7 k/s"), (2.5e7, "25.0 M/s")],
)
def test_rate(per_second, text):
    assert units.rate(per_second) == text


@pytest.mark.parametrize(
    ("measured", "predicted", "text"),
    [
        (1.0, 1.0, "±0 %"),
        (1.046, 1.0, "+4.6 %"),
        (0.5, 1.0, "−50 %"),
        (25.0, 1.0, "+2,400 %"),
        (1.0, 0.0, "–"),
    ],
)
def test_deviation(measured, predicted, text):
    assert units.deviation(measured, predicted) == text
