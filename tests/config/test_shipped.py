"""Every shipped config loads, fast, with nothing of the compute nodes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hrdc_hpc.config import find
from hrdc_hpc.config.load import load, loads, to_yaml

SHIPPED = find.shipped()


def test_the_runs_that_the_readme_promises() -> None:
    assert {"digits_lt.yaml", "flowers_lt.yaml", "inat.yaml", "imagenet_lt.yaml"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_loads_and_writes_back(name: str) -> None:
    run = load(name)
    assert run.name == Path(name).stem
    assert loads(to_yaml(run)) == run


@pytest.mark.parametrize("name", SHIPPED)
def test_takes_the_rival_and_the_ablations_as_overrides(name: str) -> None:
    assert load(name, ["method=ce"]).method.name == "ce"
    run = load(name, ["method.loss.gamma=.3", "method.fusion=average", "model.backbone=tiny", "optim.schedule=cosine"])
    assert run.method.options.loss.options.gamma == 0.3


@pytest.mark.parametrize("name", SHIPPED)
def test_its_head_tells_how_to_run_it(name: str) -> None:
    text = (find.shipped_folder() / name).read_text()
    head = text[: text.index("\nname:")]
    assert f"python -m hrdc_hpc.launch --partition gpu --cfg {name}" in head or f"--cluster local --cfg {name}" in head
    for option in ("# Data ", "# Cost "):
        assert option in head
    for overrides in re.findall(r"optim='(.*)'", head):  # a whole section in a comment must stay valid
        load(name, [f"optim={overrides}"])


def test_inat_is_the_recipe_of_the_paper() -> None:
    run = load("inat.yaml")
    assert (run.data.levels.first_over, run.data.levels.last_under) == (100, 20)
    assert (run.optim.global_batch, run.optim.lr, run.optim.weight_decay, run.optim.epochs) == (256, 0.1, 1e-4, 200)
    assert (run.model.backbone.name, run.optim.schedule.name) == ("resnet50", "cosine")
    assert run.method.options.loss.options.gamma == 0.1


def test_imagenet_lt_is_the_recipe_of_the_paper() -> None:
    run = load("imagenet_lt.yaml")
    assert run.data.dataset.options.evaluate == "test"
    assert (run.data.levels.first_over, run.data.levels.last_under) == (100, 20)
    assert (run.optim.global_batch, run.optim.lr, run.optim.weight_decay, run.optim.epochs) == (256, 0.1, 5e-4, 180)
    assert (run.model.backbone.name, run.optim.schedule.name) == ("resnext50_32x4d", "cosine")


def test_every_sampler_goes_with_a_shipped_config() -> None:
    for sampler in ("uniform", "class_balanced", "square_root", "progressive", "reversed"):
        assert load("imagenet_lt.yaml", [f"data.sampler={sampler}"]).data.sampler.name == sampler


def test_the_login_node_needs_neither_torch_nor_time() -> None:
    """Import, read and write inat.yaml in a fresh interpreter; processor time, as other work may share the machine."""
    code = """
import sys, time
start = time.process_time()
from hrdc_hpc.config.load import load, to_yaml
to_yaml(load("inat.yaml"))
seconds = time.process_time() - start
from hrdc_hpc.config.find import shipped
for name in shipped():
    load(name)
heavy = {"torch", "torchvision", "nvidia", "sklearn", "PIL", "submitit"} & set(sys.modules)
print(f"{seconds:.3f}", *sorted(heavy))
"""
    best = 10.0
    for _ in range(3):
        command = [sys.executable, "-c", code]
        told = subprocess.run(command, cwd=find.shipped_folder().parent, check=True, capture_output=True, text=True)
        seconds, *heavy = told.stdout.split()
        assert heavy == []
        best = min(best, float(seconds))
    assert best < 0.8
