"""`bench step` on a tiny network: the table, the JSON, what this machine cannot do, mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hrdc_hpc import bench
from hrdc_hpc.config.load import load
from hrdc_hpc.engine.ladder import made_up_classes
from hrdc_hpc.record.machine import short_name

TINY = ["step", "--model", "tiny", "--batch", "8", "--steps", "1", "compute.threads=1", "compute.device=cpu"]


@pytest.mark.slow
def test_ladder_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    words = [*TINY, "--classes", "12", "--rounds", "2", "--rungs", "fp32 NCHW,bf16,graph", "compute.peak_tflops=0.1"]
    threads = torch.get_num_threads()
    try:
        assert bench.main([*words, "--json", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    plain, half, graph = report["rows"]
    assert (plain["name"], half["name"]) == ("fp32 NCHW", "bf16 channels_last")
    assert len(plain["rounds"]) == 2
    assert plain["speed_up"]["ratio"] == 1
    assert half["speed_up"]["ratio"] > 0
    # the user's peak is for the precision of the run, which is fp32 on a CPU without matrix units
    assert plain["mfu"] == pytest.approx(plain["images_per_s"] * report["flops_per_image"] / 1e11)
    moved = report["bytes_per_image"]["half precision"]["eager"]
    assert half["memory_share"] == pytest.approx(half["images_per_s"] * moved / report["bandwidth_bytes_per_s"])
    assert graph["failed"] == "not measured: needs an NVIDIA GPU"
    assert report["settings"]["classes"] == 12
    assert report["machine"]["packages"]["torch"] == torch.__version__.split("+")[0]
    text = capsys.readouterr().out
    for words_there in ("fp32 NCHW", "MFU", "not measured", "GFLOP an image"):
        assert words_there in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "command"),
        (["stp"], "invalid choice"),
        ([*TINY, "--rungs", "fp64"], "there are fp32 NCHW"),
        ([*TINY, "--batch", "0"], "whole number above 0"),
        ([*TINY, "--seconds", "1"], "not allowed with"),
        ([*TINY, "optim.learning_rate=1"], "Did you mean 'lr'"),
    ],
)
def test_mistakes_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = bench.main(words)
    except SystemExit as left:
        code = left.code
    assert code == 78
    assert said in capsys.readouterr().err


def test_made_up_classes_are_long_tailed() -> None:
    config = load("cifar10_lt.yaml")
    classes = made_up_classes(config, 1000)
    assert classes.counts_C[:4].tolist() == [1000, 500, 333, 250]
    assert classes.counts_C.min() == 1
    # ranks of the config are for ten classes
    assert made_up_classes(config, 10).levels_C.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("cpu", "gpus", "name"),
    [
        ("AMD EPYC", [], "epyc-2core"),
        ("Intel(R) Xeon(R) Platinum 8480+", [], "xeon-platinum-8480-2core"),
        ("AMD EPYC 7763 64-Core Processor", [], "epyc-7763-2core"),
        ("AMD EPYC", ["NVIDIA H200"], "h200"),
        ("AMD EPYC", ["NVIDIA H100 80GB HBM3"] * 8, "8x-h100"),
        ("AMD EPYC", ["NVIDIA A100-SXM4-80GB"], "a100"),
        ("AMD EPYC", ["NVIDIA GeForce RTX 4090"], "rtx-4090"),
    ],
)
def test_name_of_the_machine(cpu: str, gpus: list[str], name: str) -> None:
    assert short_name({"cpu": cpu, "cores": 2, "gpus": [{"name": gpu} for gpu in gpus]}) == name
