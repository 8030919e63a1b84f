"""`python -m hrdc_hpc.export`: the answers of the evaluation, from a process that has nothing of this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hrdc_hpc import evaluate, export
from hrdc_hpc.record.folder import RunFolder

pytestmark = [pytest.mark.dali, pytest.mark.timeout(300)]

ELSEWHERE = """
import json, sys
import numpy as np, torch

file, folder, *batches = sys.argv[1:]
torch.set_num_threads(1)
told = {"hrdc.json": ""}
program = torch.export.load(file, extra_files=told).module()
images = torch.from_numpy(np.load(f"{folder}/images.npy"))
answers = [program(part) for part in images.split([int(batch) for batch in batches])]
for kind in ("logits", "probabilities"):
    for name in answers[0][kind]:
        np.save(f"{folder}/{kind}-{name}.npy", torch.cat([answer[kind][name] for answer in answers]).numpy())
np.save(f"{folder}/features.npy", torch.cat([answer["features"] for answer in answers]).numpy())
try:
    program(images[:, :-1])
except (AssertionError, RuntimeError) as error:
    print("refused:", error)
assert not [name for name in sys.modules if name.startswith("hrdc")]
print(told["hrdc.json"])
"""
"""Runs the program on images in batches of the given sizes."""


def elsewhere(file: Path, folder: Path, *batches: int) -> str:
    """Run ELSEWHERE in a fresh process, which does not import this package; return what it printed."""
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(file), str(folder), *map(str, batches)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_fresh_process_gets_the_answers_of_the_evaluation(
    run: Path, shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from hrdc_hpc.config.load import loads
    from hrdc_hpc.data.loader import EvalLoader
    from hrdc_hpc.data.loose import as_index, find

    photos = [str(photo) for photo in sorted((shared_data / "flowers" / "val" / "roses").glob("*.jpg"))[:8]]
    assert evaluate.main([str(run), "--ema", "--json", "--predict", *photos]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    file = tmp_path / "model.pt2"
    for _ in range(2):  # an export may replace an export
        assert export.main([str(run), "--ema", "--out", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt2"]

    config = loads((run / "config.yaml").read_text())
    index = as_index(find(photos)[0], ["none"])
    device = torch.device("cpu")
    with EvalLoader(index, config.data, batch_size=8, rank=0, world_size=1, device=device, cores=1) as loader:
        (batch,) = loader.batches()
    np.save(tmp_path / "images.npy", batch.images_BHWC.numpy())
    refused, _, told = elsewhere(file, tmp_path, 1, 7).partition("\n")
    assert refused.startswith("refused: ")

    described = json.loads(told)
    classes = [sorted(line["classes"], key=lambda told: told["label"]) for line in lines]
    assert described["classes"] == [told["class"] for told in classes[0]]
    assert described["predictions"] == list(classes[0][0]["probabilities"])
    assert (described["primary"], described["step"], described["averaged_weights"]) == ("fused_tail", 36, True)
    assert described["input"]["side"] == 24
    for kind in ("logits", "probabilities"):
        for name in classes[0][0][kind]:
            wanted = np.array([[told[kind][name] for told in row] for row in classes], np.float32)
            got = np.load(tmp_path / f"{kind}-{name}.npy")
            # not the batches of the evaluation: kernels may add up in another order
            assert np.abs(got - wanted).max() <= 1e-6 * max(1, np.abs(wanted).max()), f"{kind} {name}"
    assert np.load(tmp_path / "features.npy").shape == (8, 32)


def test_mistakes_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert export.main(list(arguments)) == 78
        return capsys.readouterr().err

    thesis = tmp_path / "thesis.pt2"
    thesis.write_text("three years")
    assert "is there and is not an export of this command" in refused(str(run), "--out", str(thesis))
    assert thesis.read_text() == "three years"
    assert "model.onnx must end in .pt2" in refused(str(run), "--out", str(tmp_path / "model.onnx"))
    assert f"no folder {tmp_path}/no; make it" in refused(str(run), "--out", str(tmp_path / "no" / "model.pt2"))
    assert "not a run folder" in refused(str(tmp_path), "--out", str(tmp_path / "model.pt2"))
    new = RunFolder.create(tmp_path / "new", config_text=(run / "config.yaml").read_text(), manifest={})
    assert "no whole checkpoint; there: none" in refused(str(new.path), "--out", str(tmp_path / "model.pt2"))
    with pytest.raises(SystemExit) as left:
        export.main([str(run), "--out", str(tmp_path / "model.pt2"), "--batch", "some"])
    assert left.value.code == 78
    assert "--batch: must be 'dynamic' or a number above 0; got 'some'" in capsys.readouterr().err
