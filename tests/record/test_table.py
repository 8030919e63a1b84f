"""The table that launch and evaluate end with."""

from __future__ import annotations

import pytest

from hrdc_hpc.record.table import accuracy_table, print_table

EVEN = {"head": {"overall": 0.5, "balanced": 0.5, "many": 0.9, "medium": 0.5, "few": None}}
UNEVEN = {"head": {"overall": 0.5, "balanced": 0.25, "many": 0.9, "medium": 0.5, "few": 0.0}}


def test_percent_and_groups_without_classes(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(accuracy_table(EVEN, "head", "title", EVEN))
    out = capsys.readouterr().out
    assert "balanced" not in out
    cells = [cell.strip() for cell in next(line for line in out.splitlines() if "head *" in line).split("│")[1:-1]]
    assert cells == ["head *", "50.00", "90.00", "50.00", "-"]
    assert "averaged weights: head " in out


def test_balanced_accuracy_is_shown_where_it_differs(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(accuracy_table(UNEVEN, "head", "title"))
    out = capsys.readouterr().out
    assert "balanced" in out
    assert "25.00" in out
