"""Time limits in SLURM's forms."""

from __future__ import annotations

import pytest

from hrdc_hpc.cluster.times import minutes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("90:00", 90), ("2:30", 3), ("2:30:00", 150), ("0:00:30", 1), ("1-0", 1440), ("1-12:30", 2190),
        ("1-02:03:04", 1564), (" 5 ", 5),
    ],
)  # fmt: skip
def test_minutes(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-5", "1h", "1:2:3:4", "1-", "2.5", "0:00"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="known: minutes, minutes:seconds, hours:minutes:seconds"):
        minutes(text)
