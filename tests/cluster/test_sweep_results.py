"""The table of a sweep's results."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from hrdc_hpc.cluster import sweep
from hrdc_hpc.cluster.sweep_results import markdown, result_rows, table
from hrdc_hpc.config.grid import elements
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.table import print_table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A sweep over two methods and three seeds, of which the last run of the second method is missing."""
    grid = {"method": ["hrdc", "ce|x"], "seed": ["0", "1", "2"]}
    made = sweep.Sweep(path=tmp_path / "s", grid=grid, elements=elements(grid), cfg="c.yaml", command=[])
    made.path.mkdir()
    sweep.write(made)
    shares = (0.5, 0.6, 0.75, 0.1, 0.2, None)
    for element, share in zip(made.elements, shares, strict=True):
        if share is not None:
            accuracy = {"overall": share, "balanced": share / 2, "many": share, "medium": None, "few": 0.0}
            summary = {"primary": "tail", "accuracy": {"tail": accuracy, "head": dict.fromkeys(accuracy, 1.0)}}
            made.run(element).mkdir()
            RunFolder(made.run(element)).write_summary(summary)
    return made.path


def test_mean_and_deviation_over_the_seeds(path: Path) -> None:
    hrdc, ce = result_rows(path)
    assert hrdc.values == {"method": "hrdc"}
    assert hrdc.predictions == ["tail"]
    assert hrdc.mean["balanced"] == pytest.approx((0.25 + 0.3 + 0.375) / 3)
    assert hrdc.deviation["balanced"] == pytest.approx(statistics.stdev([0.25, 0.3, 0.375]))
    assert hrdc.mean["medium"] is None
    assert hrdc.deviation["few"] == 0
    assert (len(ce.finished), len(ce.elements)) == (2, 3)
    assert ce.mean["many"] == pytest.approx(0.15)


def test_the_tables(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = result_rows(path)
    assert markdown(rows).splitlines() == [
        "| method | prediction | n | balanced | many | medium | few |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| hrdc | tail | 3 | 30.83 ± 6.29 | 61.67 ± 12.58 | - | 0.00 ± 0.00 |",
        "| ce\\|x | tail | 2 of 3 | 7.50 ± 3.54 | 15.00 ± 7.07 | - | 0.00 ± 0.00 |",
    ]
    print_table(table(rows, "sweep s"))
    assert "30.83 ± 6.29" in capsys.readouterr().out


def test_before_anything_is_finished(tmp_path: Path) -> None:
    grid = {"seed": ["0", "1"]}
    (tmp_path / "s").mkdir()
    sweep.write(sweep.Sweep(path=tmp_path / "s", grid=grid, elements=elements(grid), cfg="c", command=[]))
    (row,) = result_rows(tmp_path / "s")
    assert (row.values, row.finished, row.mean["balanced"]) == ({}, [], None)
    assert markdown([row]).splitlines()[-1] == "| - | 0 of 2 | - | - | - | - |"


def test_what_is_no_sweep(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the folder of a sweep \(no sweep.json\)"):
        result_rows(tmp_path)
    (tmp_path / "sweep.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="version 99; this code knows 1"):
        result_rows(tmp_path)


def test_measured_runs_are_no_results(path: Path) -> None:
    last = path / sweep.read(path).elements[-1].name
    last.mkdir()
    RunFolder(last).write_summary({"measured": True, "images_per_s": 1.0})
    assert [len(row.finished) for row in result_rows(path)] == [3, 2]
