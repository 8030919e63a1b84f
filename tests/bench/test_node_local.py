"""The benchmark of what nodes keep, on few images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import node_local
from tests.data.images import write_set

pytestmark = [pytest.mark.dali, pytest.mark.slow]


def test_it_measures_and_writes_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photographs = write_set(tmp_path / "photographs", {"a": 40}, {"a": 1})
    sizes = ["--gigabytes", "0.001", "--images", "40", "--rounds", "1", "--record", str(tmp_path / "records")]
    assert node_local.main(["--photographs", str(photographs), *sizes]) == 0
    (page,) = (tmp_path / "records").glob("node-local_*.md")
    assert "| staging, MB/s " in page.read_text()
    report = json.loads(page.with_suffix(".json").read_text())
    assert all(rate > 0 for rates in report["figures"].values() for rate in rates)
    assert report["figures"]["bytes of a decoded image"] == [256 * 341 * 3 + 19]
