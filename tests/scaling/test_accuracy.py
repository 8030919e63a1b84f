"""Time to accuracy: the sweep that is made of it, and what is read off its runs."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hrdc_hpc
from benchmarks import to_accuracy
from hrdc_hpc.cluster import sweep
from hrdc_hpc.config.grid import elements
from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.scaling import accuracy, curves
from hrdc_hpc.scaling.curves import Point, Trained, Wanted

pytestmark = pytest.mark.slow

CONFIG = """
name: small
data: {dataset: digits_lt, image_size: 24, eval_resize: 32}
model: {backbone: {name: tiny, width: 8}}
method: hrdc
optim: {epochs: 4, global_batch: 32, lr: 0.1, lr_batch: 32, warmup_epochs: 1}
checkpoint: {every_steps: 60}
log: {every_steps: 12}
eval: {every_epochs: 2}
"""
PER_EPOCH, EPOCH_S, START_S, EVAL_S = 10, 100.0, 10.0, 5.0
NAN = "ValueError: the loss is not a number in step 21"


def make_study(parent: Path, batches: Sequence[int], seeds: int = 1, asked: str = "overall=50") -> sweep.Sweep:
    grid = {"optim.global_batch": [str(batch) for batch in batches], "seed": [str(seed) for seed in range(seeds)]}
    command = ["python", "-m", "hrdc_hpc.scaling", "--cfg", "small.yaml", "--to-accuracy", asked]
    made = sweep.Sweep(path=parent / "study", grid=grid, elements=elements(grid), cfg="small.yaml", command=command)
    made.path.mkdir()
    sweep.write(made)
    return made


def make_run(study: sweep.Sweep, batch: int, seed: int = 0, *overrides: str) -> Path:
    name = f"global_batch-{batch}_seed-{seed}"
    config = loads(CONFIG, "test", [f"name={name}", f"optim.global_batch={batch}", f"seed={seed}", *overrides])
    return RunFolder.create(study.path / name, config_text=to_yaml(config), manifest={}).path


def attempt(
    run: Path, number: int, at: float, first: int, shares: Sequence[float], *, ranks: int = 1, end: str | None = None,
    device: str = "cpu",
) -> float:  # fmt: skip
    """Write down an attempt that goes on after epoch `first`, and its evaluations; when it ended."""
    step, now = first * PER_EPOCH, at + START_S
    records: list[dict[str, Any]] = [
        phase(at, "startup", "begin", 0),
        {"kind": "start", "step": 0, "time": at + 1, "device": device, "steps_per_epoch": PER_EPOCH, "steps": 40},
        phase(now, "startup", "end", step), phase(now, "train", "begin", step),
    ]  # fmt: skip
    for share in shares:
        step, now = step + PER_EPOCH, now + EPOCH_S
        records += [
            {"kind": "train", "step": step, "time": now}, phase(now, "evaluate", "begin", step),
            {"kind": "eval", "step": step, "time": now + EVAL_S, "epoch": step // PER_EPOCH, "primary": "tail",
             "accuracy": {"tail": accuracies(share), "head": accuracies(1.0)}},
            phase(now + EVAL_S, "evaluate", "end", step),
        ]  # fmt: skip
        now += EVAL_S
    if end:
        records.append({"kind": "end", "step": step, "time": now, "reason": end})
    lines = (json.dumps({"attempt": number, **record}) for record in records)
    (run / "metrics" / f"attempt-{number}.jsonl").write_text("\n".join(lines) + "\n")
    info = {"world_size": ranks, "job_id": str(number), "cluster": "local", "started": at}
    line = {"attempt": number, "time": at, "host": "h", "pid": 1, "info": info, "previous_end": None}
    with (run / "attempts.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    return now


def phase(time: float, name: str, event: str, step: int) -> dict[str, Any]:
    return {"kind": "phase", "name": name, "event": event, "step": step, "time": time}


def accuracies(share: float) -> dict[str, float | None]:
    return {"overall": share, "balanced": share, "many": 0.9, "medium": share, "few": share / 2}


def finished(run: Path, shares: Sequence[float], **more: Any) -> None:
    attempt(run, 0, 1000, 0, shares, end="finished", **more)
    RunFolder(run).write_summary({})


def read(study: sweep.Sweep, metric: str = "overall", value: float | None = 0.5) -> dict[str, Trained]:
    wanted = curves.parse_wanted(metric if value is None else f"{metric}={100 * value}")
    return {run.name: run for run in curves.read(sweep.read(study.path), wanted).runs}


def only(study: sweep.Sweep) -> Trained:
    (run,) = read(study).values()
    return run


def test_steps_done_again_count_once_and_the_later_evaluation_counts(tmp_path: Path) -> None:
    """Three epochs on 2 ranks, killed with epoch 1 saved; two of them again on 4 ranks, less accurate at first."""
    study = make_study(tmp_path, [32])
    run = make_run(study, 32)
    assert attempt(run, 0, 1000, 0, [0.2, 0.5, 0.6], ranks=2) == 1325
    attempt(run, 1, 5000, 1, [0.4, 0.65], ranks=4)
    found = only(study)
    assert [(p.epoch, p.accuracy["overall"]) for p in found.points] == [(1, 0.2), (2, 0.4), (3, 0.65)]
    at = found.reached("overall", 0.5)
    assert at
    assert (at.epoch, at.step) == (3, 30)
    assert at.training_s == pytest.approx(3 * EPOCH_S)
    assert at.training_device_s == pytest.approx(EPOCH_S * 2 + 2 * EPOCH_S * 4)
    wall = (START_S + 3 * (EPOCH_S + EVAL_S), START_S + 2 * (EPOCH_S + EVAL_S))  # without the 3,675 s in between
    assert at.attempts_s == pytest.approx(sum(wall))
    assert at.attempts_device_s == pytest.approx(2 * wall[0] + 4 * wall[1])
    assert found.images_per_s == pytest.approx(32 * 30 / (3 * EPOCH_S))
    assert found.state == "lost"


def test_until_it_is_trained_again_an_evaluation_still_counts(tmp_path: Path) -> None:
    study = make_study(tmp_path, [32])
    run = make_run(study, 32)
    attempt(run, 0, 1000, 0, [0.2, 0.5, 0.6])
    attempt(run, 1, 5000, 1, [0.4])
    assert [point.accuracy["overall"] for point in only(study).points] == [0.2, 0.4, 0.6]


def test_gpu_hours_are_of_the_gpus_that_the_job_holds(tmp_path: Path) -> None:
    study = make_study(tmp_path, [32])
    run = make_run(study, 32, 0, "cluster.gpus_per_node=8", "cluster.ranks_per_node=2")
    finished(run, [0.6], ranks=4, device="cuda:0")
    (point,) = only(study).points
    assert point.training_device_s == pytest.approx(16 * EPOCH_S)
    assert accuracy.report(study.path)["device"] == "GPU"


@pytest.mark.parametrize(("value", "epoch"), [(0.5, 2), (0.551, 2), (0.5511, 3), (0.62, 3), (0.7, None)])
def test_the_first_evaluation_at_or_above(value: float, epoch: int | None) -> None:
    points = [point(1, 0.4), point(2, 0.551), point(3, 0.62), point(4, 0.5)]
    at = Trained(name="r", batch=1, seed=0, state="finished", points=points).reached("overall", value)
    assert (at.epoch if at else None) == epoch


def point(epoch: int, share: float) -> Point:
    return Point(
        step=epoch, epoch=epoch, accuracy=accuracies(share), training_s=1, attempts_s=1, training_device_s=1,
        attempts_device_s=1,
    )  # fmt: skip


def test_without_a_value_the_highest_that_all_finished_runs_reached(tmp_path: Path) -> None:
    study = make_study(tmp_path, [32, 64, 128], asked="few")
    finished(make_run(study, 32), [0.4, 0.6, 0.5])
    finished(make_run(study, 64), [0.2, 0.3, 0.4])
    attempt(make_run(study, 128), 0, 1000, 0, [0.1])
    told = accuracy.report(study.path)
    assert (told["metric"], told["value"], told["asked"]) == ("few", 0.2, False)
    assert [run["reached"] and run["reached"]["epoch"] for run in told["runs"]] == [1, 3, None]
    page = (study.path / "report" / "to-accuracy.md").read_text()
    assert "few 20 % is the highest that all finished runs reached" in page


def test_a_group_without_images_is_never_reached(tmp_path: Path) -> None:
    gone = {**accuracies(0.5), "few": None}
    points = [
        Point(step=1, epoch=1, accuracy=gone, training_s=1, attempts_s=1, training_device_s=1, attempts_device_s=1)
    ]
    run = Trained(name="r", batch=1, seed=0, state="finished", points=points)
    assert run.reached("few", 0.01) is None
    assert curves.highest_of_all([run], "few") is None


@pytest.fixture
def mixed(tmp_path: Path) -> sweep.Sweep:
    """Two seeds of three batches: both well; one short of the value, one failed; one at its beginning, one missing."""
    study = make_study(tmp_path, [32, 64, 128], seeds=2)
    finished(make_run(study, 32, 0), [0.4, 0.5, 0.6, 0.7])
    finished(make_run(study, 32, 1), [0.5, 0.6, 0.7, 0.8])
    finished(make_run(study, 64, 0), [0.1, 0.2, 0.3, 0.4])
    attempt(make_run(study, 64, 1), 0, 1000, 0, [0.3, 0.55], end=NAN)
    make_run(study, 128, 0)
    return study


def test_the_report_of_what_is_there(mixed: sweep.Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy.report(mixed.path)
    console = capsys.readouterr().out
    page = (mixed.path / "report" / "to-accuracy.md").read_text()
    tables = rows(page)
    reach, end = tables["batch"][:3], tables["batch"][3:]
    assert reach[0]["reached"] == "2 of 2"
    assert (reach[0]["epochs"], reach[0]["steps"]) == ("1.5 (1-2)", "15 (10-20)")
    assert reach[0]["training, min"] == "2.50 (1.67-3.33)"
    assert reach[0]["attempts, min"] == f"{(START_S * 2 + 3 * (EPOCH_S + EVAL_S)) / 2 / 60:.2f} (1.92-3.67)"
    assert (reach[0]["lr"], reach[1]["lr"], reach[0]["warm-up"]) == ("0.1", "0.2", "10")
    assert (reach[1]["reached"], reach[1]["epochs"]) == ("1 of 2", "2")
    assert (reach[2]["reached"], reach[2]["epochs"], reach[2]["images/s"]) == ("0 of 2", "-", "-")
    assert end[0]["overall"] == "75.00 (70.00-80.00)"
    assert (end[1]["overall"], end[1]["runs"]) == ("40.00", "1 finished, 1 failed")
    assert (end[2]["few"], end[2]["runs"]) == ("-", "1 prepared, 1 not submitted")
    failed = next(row for row in tables["run"] if row["state"] == "failed")
    assert failed["why"].startswith(NAN)
    assert NAN.split()[1] in console
    assert "read, not used for choosing" in page
    assert "rank-hours" in page
    assert "They say nothing of GPU-hours" in page


def rows(page: str) -> dict[str, list[Mapping[str, str]]]:
    """Rows of a page's tables, by the name of the first column."""
    found: dict[str, list[Mapping[str, str]]] = {}
    columns: list[str] = []
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        elif set(cells[0]) != {"-"}:
            found.setdefault(columns[0], []).append(dict(zip(columns, cells, strict=True)))
    return found


def test_other_forms_and_what_was_asked_for_last(mixed: sweep.Sweep) -> None:
    pytest.importorskip("matplotlib")
    accuracy.report(mixed.path, Wanted(metric="many", value=0.9))
    told = accuracy.report(mixed.path)
    assert (told["metric"], told["value"]) == ("many", 0.9)
    report = mixed.path / "report"
    lines = list(csv.DictReader((report / "to-accuracy.csv").read_text().splitlines()))
    assert [line["run"] for line in lines] == [element.name for element in mixed.elements]
    assert (lines[0]["reached"], lines[0]["steps"], lines[0]["end_overall_percent"]) == ("True", "10", "70.0")
    assert float(lines[0]["training_h"]) == pytest.approx(EPOCH_S / 3600)
    assert (lines[4]["reached"], lines[4]["steps"], lines[4]["end_epochs"]) == ("False", "", "")
    plain = json.loads((report / "to-accuracy.json").read_text())
    assert [len(run["curve"]) for run in plain["runs"]] == [4, 4, 4, 2, 0, 0]
    assert (report / "to-accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "](to-accuracy.png)" in (report / "to-accuracy.md").read_text()


def test_a_record_names_no_folder(mixed: sweep.Sweep, tmp_path: Path) -> None:
    told = ["data.dataset.root=/home/me/digits", "--out-dir", "/home/me/runs"]
    sweep.write(replace(mixed, command=[*mixed.command, *told]))
    words = [str(mixed.path), "--title", "A title", "--metric", "overall", "--metric", "few=30", "--note", "A note."]
    assert to_accuracy.main(["try", *words, "--out", str(tmp_path / "records")]) == 0
    page = next((tmp_path / "records").glob("try_*.md")).read_text()
    assert "data.dataset.root=DIR --out-dir DIR" in page
    assert "/home" not in page
    assert str(tmp_path) not in page
    assert "to reach overall 40 %" in page
    assert [row["reached"] for row in rows(page)["batch"][3:6]] == ["2 of 2", "0 of 2", "0 of 2"]  # few 30 %
    assert rows(page)["epoch"][0]["2"] == "50.0"
    assert "1 finished, 1 failed" in page
    assert "A note." in page
    assert to_accuracy.main(["try", str(tmp_path), "--title", "A title"]) == 78


def test_held_out_images_are_named(tmp_path: Path) -> None:
    study = make_study(tmp_path, [32])
    finished(make_run(study, 32, 0, "data.holdout={share: 0.1}"), [0.6])
    told = accuracy.report(study.path)
    assert told["images"] == "held-out"
    page = (study.path / "report" / "to-accuracy.md").read_text()
    assert "on the held-out images" in page
    assert "a batch may be chosen by them" in page


def test_before_anything_is_evaluated(tmp_path: Path) -> None:
    study = make_study(tmp_path, [32])
    told = accuracy.report(study.path)
    assert told["runs"][0]["state"] == "not submitted"
    assert not (study.path / "report" / "to-accuracy.png").exists()


def test_what_is_no_such_study(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    grid = {"seed": ["0", "1"]}
    sweep.write(sweep.Sweep(path=tmp_path / "other", grid=grid, elements=elements(grid), cfg="c", command=[]))
    for folder in (tmp_path, tmp_path / "other"):
        assert not accuracy.is_study(folder)
        with pytest.raises(ValueError, match="is not a time-to-accuracy study"):
            accuracy.report(folder)


# the command


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(CONFIG)
    return tmp_path


def launch(*overrides: str, **flags: Any) -> int:
    given = {"cfg": "small.yaml", "to_accuracy": "overall=60", "batches": "32,64", "repeats": None, "prepare": True}
    return accuracy.launch(argparse.Namespace(**{**given, **flags}, overrides=list(overrides)), ["command"])


def configs(study: Path) -> dict[str, Any]:
    names = [element.name for element in sweep.read(study).elements]
    return {name: loads((study / name / "config.yaml").read_text()) for name in names}


def test_a_sweep_over_batches_and_seeds_that_can_grow(place: Path) -> None:
    assert launch("seed=3") == 0
    study = place / "runs" / "small-to-accuracy"
    assert accuracy.is_study(study)
    found = configs(study)
    assert list(found) == ["global_batch-32_seed-3", "global_batch-64_seed-3"]
    small, large = found.values()
    assert (small.checkpoint.every_steps, large.checkpoint.every_steps) == (60, 30)
    assert (small.log.every_steps, large.log.every_steps) == (12, 6)
    assert {one.eval.every_epochs for one in (small, large)} == {1}
    assert {one.optim.lr_batch for one in (small, large)} == {32}
    assert launch("seed=3", batches="32,64,128", repeats=2) == 0
    assert len(configs(study)) == 6


def test_the_rate_where_the_config_has_no_lr_batch(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "small.yaml").write_text(CONFIG.replace("lr_batch: 32, ", ""))
    assert launch(batches=None, name="scaled") == 0
    assert "taken as the config's own batch, 32" in capsys.readouterr().out
    found = configs(place / "runs" / "scaled")
    assert [(one.optim.global_batch, one.optim.lr_batch) for one in found.values()] == [(32, 32), (64, 32), (128, 32)]
    assert launch("optim.lr_batch=null", "eval.every_epochs=4", name="same") == 0
    assert "every batch trains at lr 0.1" in capsys.readouterr().out
    assert {(one.optim.lr_batch, one.eval.every_epochs) for one in configs(place / "runs" / "same").values()} == {
        (None, 4)
    }


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"to_accuracy": "top1=60"}, "METRIC one of overall, balanced, many, medium, few; got 'top1=60'"),
        ({"to_accuracy": "few=0"}, "in per cent, above 0 and at most 100; got '0'"),
        ({"to_accuracy": "few=sixty"}, "in per cent, above 0 and at most 100; got 'sixty'"),
        ({"batches": "32,x"}, "such as 128,256,512; got '32,x'"),
        ({"batches": "32,32"}, "each once; got '32,32'"),
        ({"repeats": -1}, "--repeats: must be at least 1; got -1"),
    ],
)  # fmt: skip
def test_a_wrong_command_line(place: Path, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("-", r"\-")):
        launch(**flags)
    assert not (place / "runs").exists()


def test_runs_that_would_measure_are_refused(place: Path) -> None:
    with pytest.raises(ValueError, match="measure is set, but these runs train"):
        launch("measure.rounds=2")
    assert not (place / "runs").exists()


def test_another_sweep_is_not_added_to(place: Path) -> None:
    grid = {"seed": ["0", "1"]}
    (place / "runs" / "small-to-accuracy").mkdir(parents=True)
    there = sweep.Sweep(
        path=place / "runs" / "small-to-accuracy", grid=grid, elements=elements(grid), cfg="c", command=[]
    )
    sweep.write(there)
    with pytest.raises(ValueError, match="is another study or sweep"):
        launch()


_COMMAND = """
import argparse, sys
from hrdc_hpc.scaling import accuracy
given = {"cfg": "small.yaml", "batches": "32,64", "repeats": None, "cluster": "local", "gpus_per_node": 0}
more = {"to_accuracy": "overall", "ranks_per_node": 1, "wait": True, "overrides": sys.argv[1:]}
sys.exit(accuracy.launch(argparse.Namespace(**given, **more), ["command"]))
"""


@pytest.mark.slow
def test_two_batches_trained(place: Path, digits: Path) -> None:
    overrides = (f"data.dataset.root={digits}", "optim.epochs=2", "compute.device=cpu", "log.tensorboard=false")
    path = {"PYTHONPATH": str(Path(hrdc_hpc.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *overrides], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    told = json.loads((place / "runs" / "small-to-accuracy" / "report" / "to-accuracy.json").read_text())
    small, large = told["runs"]
    assert (small["steps_per_epoch"], large["steps_per_epoch"]) == (12, 6)  # of 402 images
    for run in (small, large):
        assert run["state"] == "finished"
        assert [at["epoch"] for at in run["curve"]] == [1, 2]
        assert run["reached"]["accuracy"]["overall"] >= told["value"]
        assert 0 < run["end"]["training_s"] < run["end"]["attempts_s"]
        assert run["end"]["step"] == 2 * run["steps_per_epoch"]
    assert told["value"] == min(max(at["accuracy"]["overall"] for at in run["curve"]) for run in (small, large))
    assert "time to overall" in done.stdout
