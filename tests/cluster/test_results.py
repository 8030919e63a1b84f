"""What a launch prints at the end of a run."""

from __future__ import annotations

import pytest

from hrdc_hpc.cluster.results import print_result
from hrdc_hpc.config.dump import to_yaml
from hrdc_hpc.config.load import load
from hrdc_hpc.record.folder import RunFolder


@pytest.mark.parametrize(
    ("overrides", "title"),
    [
        ([], "balanced test accuracy after epoch 2, step 38"),
        (["data.holdout.share=0.2"], "held-out accuracy after epoch 2, step 38"),
    ],
)
def test_the_table_says_which_images_were_evaluated(tmp_path, capsys, overrides, title):
    config_text = to_yaml(load("cifar10_lt.yaml", overrides))
    run = RunFolder.create(tmp_path / "run", config_text=config_text, manifest={})
    accuracy = {"plain": {"overall": 0.4, "balanced": 0.1, "many": 0.5, "medium": 0.0, "few": None}}
    print_result({"epoch": 2, "step": 38, "primary": "plain", "accuracy": accuracy}, run.path)
    first = capsys.readouterr().out.splitlines()[0]
    assert first.strip() == title


def test_a_measured_run_says_its_speed_in_one_line(tmp_path, capsys):
    summary = {
        "measured": True, "step": 300, "nodes": 2, "world_size": 8, "global_batch": 256, "images_per_s": 1234.56,
        "step_s": 0.20736,
    }  # fmt: skip
    print_result(summary, tmp_path / "run")
    assert capsys.readouterr().out.splitlines() == [
        "measured on 2 nodes, 8 ranks: 1234.6 images/s; a step of 256 images takes 0.2074 s (median)",
        f"run folder: {tmp_path / 'run'}",
    ]
