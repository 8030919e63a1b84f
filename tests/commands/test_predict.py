"""`python -m hrdc_hpc.evaluate RUN --predict IMAGES...`: what the evaluation would say, without the data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hrdc_hpc import evaluate
from hrdc_hpc.config.load import loads
from hrdc_hpc.data.datasets import digits_lt
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.trained import classes_of
from hrdc_hpc.record.folder import RunFolder

pytestmark = [pytest.mark.dali, pytest.mark.timeout(300)]

NO_DATA = "data.dataset.root=/no/such/folder"


def predicted(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """Lines of JSON, and what was said beside them."""
    assert evaluate.main([*arguments, "--json"]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return [json.loads(line) for line in captured.out.splitlines()], captured.err


def column(lines: list[dict[str, Any]], kind: str, name: str) -> np.ndarray:
    """float32 [N, C] of one head or prediction, classes in their order."""
    by_label = [sorted(line["classes"], key=lambda told: told["label"]) for line in lines]
    return np.array([[told[kind][name] for told in row] for row in by_label], np.float32)


def val_folders(digits: Path) -> list[str]:
    val = digits_lt.folder(digits_lt.Options(root=digits)) / "val"
    return [str(val / name) for name in digits_lt.CLASSES]


@pytest.mark.parametrize("ema", [[], ["--ema"]])
def test_validation_files_get_the_logits_of_the_evaluation_bit_for_bit(
    ema: list[str], run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(run), "--out", str(tmp_path / "out"), *ema]) == 0
    capsys.readouterr()
    lines, said = predicted(capsys, str(run), NO_DATA, *ema, "--predict", *val_folders(digits))
    assert said == ""
    assert len(lines) == 400
    for head in ("plain", "reweighted"):
        assert np.array_equal(column(lines, "logits", head), np.load(tmp_path / "out" / f"logits_{head}.npy"))
    labels = np.load(tmp_path / "out" / "labels.npy")
    assert [Path(line["image"]).parent.name for line in lines] == [digits_lt.CLASSES[label] for label in labels]
    accuracy = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    for name, told in accuracy.items():
        shares = column(lines, "probabilities", name)
        assert np.allclose(shares.sum(1), 1, atol=1e-5)
        assert np.mean(shares.argmax(1) == labels) == pytest.approx(told["overall"])
    first = lines[0]["classes"]
    assert lines[0]["primary"] == "fused_tail"
    shares = [told["probabilities"]["fused_tail"] for told in first]
    assert shares == sorted(shares, reverse=True)
    assert all(told["class"] == digits_lt.CLASSES[told["label"]] for told in first)


def test_table_shows_the_likeliest_classes_under_every_prediction(
    run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "a [bold] name.jpg"
    shutil.copy(next(Path(val_folders(digits)[3]).iterdir()), odd)
    (line,), _ = predicted(capsys, str(run), NO_DATA, "--top", "2", "--predict", str(odd))
    assert len(line["classes"]) == 2
    assert evaluate.main([str(run), NO_DATA, "--predict", str(odd)]) == 0
    table = capsys.readouterr().out
    assert "[bold]" in table
    assert table.index("fused_tail *") < table.index("plain") < table.index("reweighted")
    rows = [row for row in table.splitlines() if "│" in row]
    assert len(rows) == 5
    for told, row in zip(line["classes"], rows, strict=False):
        cells = [cell.strip() for cell in row.strip("│").split("│")]
        assert cells[1] == told["class"]
        assert cells[2] == f"{100 * told['probabilities']['fused_tail']:.2f}"
        assert cells[3] == f"{100 * told['probabilities']['plain']:.2f}"


def test_what_cannot_be_read_is_named_and_the_others_are_predicted(
    run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, empty = tmp_path / "photos", tmp_path / "empty"
    (folder / "deeper").mkdir(parents=True)
    (empty / "deeper").mkdir(parents=True)
    photos = sorted((shared_data / "flowers" / "val" / "roses").glob("*.jpg"))[:3]
    for number, photo in enumerate(photos):
        shutil.copy(photo, folder / f"{number}.jpg")
    whole = photos[0].read_bytes()
    (folder / "short.jpg").write_bytes(whole[:-2000])
    Image.open(photos[0]).save(folder / "holed.png")
    holed = (folder / "holed.png").read_bytes()
    half = len(holed) // 2  # libjpeg would go on behind a hole
    (folder / "holed.png").write_bytes(holed[:half] + b"\xff" * 40 + holed[half + 40 :])
    (folder / "kind.webp").write_bytes(b"RIFF")
    (folder / "notes.txt").write_text("not an image")
    lines, said = predicted(
        capsys, str(run), NO_DATA, "--predict", f"{tmp_path}/none.jpg", str(folder), str(empty), code=1
    )
    assert [Path(line["image"]).name for line in lines] == ["0.jpg", "1.jpg", "2.jpg"]
    for words in (
        f"{tmp_path}/none.jpg (cannot be read: No such file or directory)",
        "short.jpg (truncated",
        "holed.png (damaged, or not an image)",
        "kind.webp (this kind of image is not read; allowed: .jpg, .jpeg, .png)",
        f"{empty} (a folder without images (.jpg, .jpeg, .png); the folders in it are not searched)",
        "5 of what was given could not be predicted",
    ):
        assert words in said
    assert "notes.txt" not in said


@pytest.mark.slow
def test_small_images_are_taken_as_they_are(
    cifar_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hrdc_hpc.data.index import open_split

    assert evaluate.main([str(cifar_run), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    config = loads((cifar_run / "config.yaml").read_text())
    folder = tmp_path / "images"
    folder.mkdir()
    for number, pixels_HWC in enumerate(open_split(config.data, "val").images_NHWC[:100]):
        Image.fromarray(pixels_HWC).save(folder / f"{number:02d}.png")
    lines, _ = predicted(capsys, str(cifar_run), NO_DATA, "--predict", str(folder))
    assert np.array_equal(column(lines, "logits", "plain"), np.load(tmp_path / "out" / "logits_plain.npy")[:100])
    assert {told["class"] for told in lines[0]["classes"]} >= {"airplane", "frog"}

    content = (folder / "05.png").read_bytes()
    (folder / "05.png").write_bytes(content[:60] + b"\xff" * 60 + content[120:])
    lines, said = predicted(capsys, str(cifar_run), NO_DATA, "--predict", str(folder), code=1)
    assert len(lines) == 99
    assert "05.png (damaged" in said

    Image.new("RGB", (48, 32)).save(folder / "large.png")
    lines, said = predicted(capsys, str(cifar_run), NO_DATA, "--predict", str(folder), code=78)
    assert lines == []
    assert "1 of 101 images are not 32 x 32 pixels (height x width)" in said
    assert "large.png (32 x 48). Crop or scale them first" in said


def test_classes_come_from_the_checkpoint_or_else_from_the_data_set(run: Path) -> None:
    config = loads((run / "config.yaml").read_text())
    told = checkpoint.look(checkpoint.list_checkpoints(RunFolder(run).checkpoints)[-1]).about
    kept, counted = classes_of(told, config), classes_of({}, config)
    assert kept.as_json() == counted.as_json() == told["classes"]
    assert kept.counts_C.tolist() == digits_lt.profile(digits_lt.Options())


def test_mistakes_are_named(run: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(next(Path(val_folders(digits)[0]).iterdir()))
    new = RunFolder.create(tmp_path / "new", config_text=(run / "config.yaml").read_text(), manifest={})
    assert "no whole checkpoint; there: none" in predicted(capsys, str(new.path), "--predict", image, code=78)[1]
    said = predicted(capsys, str(run), "data.image_size=16", "--predict", image, code=78)[1]
    assert "data.image_size: 24 in the checkpoint, 16 now" in said
    for wrong, words in (
        (["--predict", image, "--top", "0"], "--top: must be at least 1; got 0"),
        (["--top", "3"], "--json and --top go with --predict"),
        (["--step", "bes"], "argument --step: must be 'best' or the number of a step; got 'bes'"),
        (["--predict", image, "--out", "x"], "--out is for evaluations"),
    ):
        with pytest.raises(SystemExit) as left:
            evaluate.main([str(run), *wrong])
        assert left.value.code == 78
        assert words in capsys.readouterr().err
