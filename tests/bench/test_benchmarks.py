"""The benchmark programs on tiny sizes: peers take real steps, records are written, what is absent is said."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import peers, step, suite
from hrdc_hpc.config.schema import Model
from hrdc_hpc.config.types import Component
from hrdc_hpc.models.backbones import tiny
from hrdc_hpc.models.network import Network, build_network

ROOT = Path(__file__).resolve().parents[2]

OWN_TRAIN = """
import argparse
from helper import begin
parser = argparse.ArgumentParser()
def train(loader, model, criterion, optimizer, epoch, device, args):
    begin(model)
    for images, labels in loader:
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()
        print("noise")
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny steps on several threads mostly wait for each other where other work has the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def setting() -> peers.Setting:
    def make() -> Network:
        torch.manual_seed(0)
        return build_network(Model(backbone=Component("tiny", tiny.Options(width=4))), ("plain",), 6)

    return peers.Setting(make, torch.randn(8, 3, 16, 16), torch.arange(8) % 6)


@pytest.mark.parametrize("name", ["timm --channels-last", "pytorch/examples imagenet", "torchvision reference"])
def test_peers_train(setting: peers.Setting, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    monkeypatch.delenv("HRDC_PEERS", raising=False)
    made: list[torch.nn.Module] = []
    model = peers.Setting.model
    monkeypatch.setattr(peers.Setting, "model", lambda self, **layout: made.append(model(self, **layout)) or made[-1])
    (peer,) = (peer for peer in peers.peers(setting) if peer.contender.name == name)
    assert peer.note == peers.RETOLD
    peer.contender.run(2)
    start, after = setting.make().state_dict(), made[0].network.state_dict()
    assert after["backbone.stem.1.num_batches_tracked"] == 2
    assert not torch.equal(start["heads.plain.weight"], after["heads.plain.weight"])


def test_own_script_is_taken_from_a_checkout(
    setting: peers.Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / peers.EXAMPLES
    script.parent.mkdir(parents=True)
    script.write_text(OWN_TRAIN)
    (script.parent / "helper.py").write_text("seen = []\nbegin = seen.append\n")
    monkeypatch.setenv("HRDC_PEERS", str(tmp_path))
    found = {peer.contender.name: peer for peer in peers.peers(setting)}
    assert {name: peer.note for name, peer in found.items()}["timm"] == peers.RETOLD
    own = found["pytorch/examples imagenet"]
    assert own.note == peers.OWN
    own.contender.run(1)
    assert capsys.readouterr().out == ""
    assert "helper" not in sys.modules
    assert str(script.parent) not in sys.path


def test_step_writes_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HRDC_PEERS", raising=False)
    monkeypatch.setattr(peers.importlib.util, "find_spec", _without("timm"))
    words = ["--model", "tiny", "--batch", "4", "--rungs", "fp32 NCHW", "--rounds", "1", "--seconds", "0.02"]
    assert step.main([*words, "--out", str(tmp_path), "compute.device=cpu", "compute.threads=1"]) == 0
    (page,) = tmp_path.glob("step-tiny_*.md")
    report = json.loads(page.with_suffix(".json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["timm"]["failed"] == "ModuleNotFoundError: not measured: timm is not installed"
    assert rows["pytorch/examples imagenet"]["images_per_s"] > 0
    assert rows["ours, default"]["speed_up"]["ratio"] == 1
    text = page.read_text()
    assert "| pytorch/examples imagenet" in text
    assert "loop re-expressed" in text
    assert str(Path.cwd()) not in text


def _without(package: str):  # type: ignore[no-untyped-def]  # stands in for find_spec
    from importlib.util import find_spec

    return lambda name, *rest: None if name == package else find_spec(name, *rest)


def test_gpu_suite_refuses_without_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suite.main(["gpu"]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


def test_programs_of_both_suites_are_there() -> None:
    for machine in ("cpu", "gpu"):
        for module, *_ in suite.programs(machine, "data"):
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.slow
def test_a_step_needs_no_package_of_the_login_node_or_the_loader() -> None:
    """`make bench-gpu` runs where submitit, DALI, rich, TensorBoard and xxhash are absent."""
    absent = ["submitit", "nvidia.dali", "rich", "tensorboard", "xxhash", "timm"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from hrdc_hpc import bench; sys.exit(bench.main(sys.argv[1:]))"
    )
    words = ["step", "--model", "tiny", "--batch", "2", "--steps", "1", "--rounds", "1", "--rungs", "fp32 NCHW"]
    command = [sys.executable, "-c", program, *words, "compute.device=cpu", "compute.threads=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| fp32 NCHW |" in done.stdout
