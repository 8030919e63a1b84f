"""Studies on this machine, of a copy of the package in which training is a small fake."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from hrdc_hpc.cluster.jobs import all_jobs

from fake_site import Site

pytestmark = pytest.mark.slow

RUNS = [f"weak-1x{ranks}-r1" for ranks in (1, 2, 3)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.end(*(made.cwd / "runs" / "small-scaling" / name for name in RUNS))


def study(site: Site) -> tuple[int, str]:
    sizes = ("--ranks-per-node", "1-3", "--repeats", "1", "--batch-per-rank", "32", "--wait")
    words = ("--cfg", "small.yaml", "--cluster", "local", *sizes)
    process = site.start(*words, command=("-m", "hrdc_hpc.scaling"))
    output, _ = process.communicate(timeout=90)
    return process.returncode, output


def test_a_failing_size_does_not_lose_the_others_and_is_measured_again(site: Site) -> None:
    site.behave("finish")
    (site.cwd / "runs" / "behave-weak-1x2-r1").write_text("bad data")
    code, output = study(site)
    assert code == 1, output
    folder = site.cwd / "runs" / "small-scaling"
    assert states(folder) == ["finished", "failed", "finished"], output
    assert "no such image" in (folder / "report" / "report.md").read_text()
    assert "1 of 3 did not finish" in output

    (site.cwd / "runs" / "behave-weak-1x2-r1").write_text("finish")
    code, output = study(site)
    assert code == 0, output
    assert states(folder) == ["finished", "finished", "finished"]
    assert [len(all_jobs(folder / run)) for run in RUNS] == [1, 2, 1]
    assert "report: " in output
    rates = [float(row["images_per_s"]) for row in rows(folder)]
    assert rates == pytest.approx([32 / 0.1, 64 / 0.12, 96 / 0.14])


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "report" / "rows.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def states(folder: Path) -> list[str]:
    return [row["state"] for row in rows(folder)]
