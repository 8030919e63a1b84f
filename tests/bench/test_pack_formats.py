"""The comparison of pack formats measures what it says, at a size for a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import pack_formats
from tests.data.images import jpeg, picture


@pytest.mark.slow
def test_all_forms_are_measured_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pack_formats, "INDEX_IMAGES", 1000)
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(picture(number, 150, 200)))
    chosen = ["--images", "60", "--kilobytes", "30", "--rounds", "2", "--photographs", str(tmp_path)]
    assert pack_formats.main([*chosen, "--disk", str(tmp_path), "--record", str(tmp_path / "records")]) == 0
    (page,) = (tmp_path / "records").glob("pack-formats_*.md")
    assert str(tmp_path) not in page.read_text()
    report = json.loads(page.with_suffix(".json").read_text())
    assert {told["form"] for told in report["forms"]} == {*pack_formats.PLACES, "shards (tar), told ahead"}
    assert all(len(told[kind]) == 2 for told in report["forms"] for kind in ("cold", "hot", "cpu_us"))
    by_side = {(told["shorter_side"], told["quality"]): told for told in report["reencoding"]}
    assert by_side[320, 95]["psnr"] > by_side[320, 90]["psnr"] > by_side[256, 90]["psnr"]
    assert not list(tmp_path.glob(".tmp-formats-*"))
