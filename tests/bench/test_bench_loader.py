"""`bench loader` on small images: every stage really runs, the table, the JSON, mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hrdc_hpc import bench
from hrdc_hpc.record.figures import number
from tests.data.images import jpeg, picture

pytestmark = pytest.mark.slow

SHORT = ["loader", "--seconds", "0.05", "--rounds", "2", "--batch", "4", "compute.device=cpu", "data.image_size=32"]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for k in range(9):
        folder = tmp_path / "photographs" / ("below" if k % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{k}.jpg").write_bytes(jpeg(picture(k, 60, 80)))
    return tmp_path / "photographs"


@pytest.mark.dali
def test_the_loader_and_each_of_its_stages(photographs, tmp_path, capsys):
    out = tmp_path / "loader.json"
    words = ["--images", str(photographs), "--threads", "1,2", "--feed-rate", "1000", "--json", str(out)]
    assert bench.main([*SHORT, *words]) == 0
    report = json.loads(out.read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [
        "read", "feed", "decode, whole", "decode, crop", "decode, resize", "decode, resize, flip", "bare libjpeg-turbo",
        "loader, 1 threads", "loader, 2 threads",
    ]  # fmt: skip
    for row in rows.values():
        assert "failed" not in row
        assert len(row["rounds"]) == 2
        assert row["cpu_s_per_image"] > 0
    assert report["images"] == 9
    loader = rows["loader, 2 threads"]
    assert report["feed_share_of_cpu"] == pytest.approx(rows["feed"]["cpu_s_per_image"] / loader["cpu_s_per_image"])
    # the feed reads, and more; a loader feeds, decodes, and more
    assert rows["feed"]["images_per_s"] < 3 * rows["read"]["images_per_s"]
    text = capsys.readouterr().out
    assert f"1,000 images/s need {number(loader['cpu_s_per_image'] * 1000)} cores" in " ".join(text.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "1,x"], "whole number above 0"),
        (["--feed-rate", "0"], "number above 0"),
        (["--images", "nowhere"], "no JPEG or PNG file in or below nowhere"),
        (["--json", "nowhere/x.json"], "--json: no folder nowhere. Make it, or name a file in another one"),
    ],
)
def test_mistakes_are_named(words, said, capsys):
    try:
        code = bench.main([*SHORT, *words])
    except SystemExit as left:
        code = left.code
    assert code == 78
    assert said in capsys.readouterr().err


def test_a_batch_larger_than_the_data_set_is_refused_in_the_options_own_words(photographs, capsys):
    assert bench.main(["loader", "--cfg", "flowers_lt.yaml", "--images", str(photographs), "--batch", "10"]) == 78
    assert "--batch: 10 is more than the 9 images there are" in capsys.readouterr().err


def test_help_is_of_the_command_that_is_asked_about(capsys):
    for command, other in (("loader", "step"), ("step", "loader")):
        with pytest.raises(SystemExit):
            bench.main([command, "--help"])
        said = capsys.readouterr().out
        assert f"`{command}` " in said
        assert f"`{other}` " not in said


def test_decoded_images_are_refused(cifar10, capsys):
    assert bench.main(["loader", "--cfg", "cifar10_lt.yaml", f"data.dataset.root={cifar10}"]) == 78
    said = capsys.readouterr().err
    assert "cifar10_lt.yaml: its images lie in memory, decoded. Name a run with encoded ones, or --images" in said


@pytest.mark.slow
@pytest.mark.dali
def test_the_record_beside_peers_has_everybody(photographs, tmp_path):
    words = ["--photographs", str(photographs), "--images", "6", "--batch", "2", "--rounds", "1", "--seconds", "0.05"]
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.loader", *words, "--threads", "1", "--out", str(tmp_path / "records")],
        cwd=root, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    (page,) = (tmp_path / "records").glob("loader_*.md")
    report = json.loads(page.with_suffix(".json").read_text())
    names = {(row["images"], row["name"]) for row in report["rows"]}
    for what in ("800x600", "photographs"):
        for name in ("ours, packed", "ours, loose files", "pure DALI", "DataLoader, PIL", "bare libjpeg-turbo (PIL)"):
            assert (what, name) in names
    assert all(row["images_per_s"] > 0 and row["cpu_s_per_image"] > 0 for row in report["rows"])
    # a smaller image is not the same image, and is still that image
    assert 0.1 < report["shorter_side"]["mean"] < 10
    assert report["bytes"]["shorter side"] < report["bytes"]["large"] / 2
    assert str(tmp_path) not in page.read_text()
