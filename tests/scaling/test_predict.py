"""Predictions on paper: what profiles, backbones and methods tell, what is refused, and the published rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.published_rows import ROWS
from benchmarks.scaling_published import compare, config_of
from hrdc_hpc.config.cluster import Network
from hrdc_hpc.config.load import load
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.measurement import AllReduce, Measurement, Node, Share
from hrdc_hpc.scaling.predict import fit_rows, on_paper, predict_on_paper
from hrdc_hpc.scaling.rows import Row, Size


def inat(*overrides: str, profile: str = "h200_ndr") -> RunConfig:
    return load("inat.yaml", [f"cluster.profile={profile}", *overrides])


def test_two_heads_of_8142_classes_by_hand() -> None:
    paper = on_paper(inat())
    assert paper.cost.parameters == 23_508_032 + 2 * 8142 * 2049
    assert paper.gradient_bytes == 4 * paper.cost.parameters
    assert on_paper(inat("method=ce")).cost.parameters == 23_508_032 + 8142 * 2049
    assert on_paper(inat("model.bias=false")).cost.parameters == 23_508_032 + 2 * 8142 * 2048
    narrow = on_paper(inat("compute.gradients=bf16"))
    assert narrow.gradient_bytes == paper.gradient_bytes / 2
    assert narrow.messages == paper.messages
    assert paper.last_bytes <= 13.2e6


def test_sizes_become_predictions_with_ranges_and_assumptions_in_words() -> None:
    sizes = [Size(nodes=n, ranks_per_node=8, mode="weak", global_batch=2048 * n) for n in (1, 16, 512)]
    found = predict_on_paper(inat(), sizes)
    assert [one.nodes for one in found.predictions] == [1, 16, 512]
    for one in found.predictions:
        assert one.batch_per_rank == 256
        assert one.low < one.images_per_s < one.high
        assert one.extrapolated, "nothing was measured"
    rates = [one.images_per_s / one.ranks for one in found.predictions]
    assert rates == sorted(rates, reverse=True)
    text = " ".join(found.assumptions)
    for said in ("56.9 M parameters", "3200 Gbit/s", "227 MB of gradients", "hides behind 50%", "Loading keeps up"):
        assert said in text


def test_the_network_decides_and_halved_gradients_help_where_it_is_slow() -> None:
    rates = {
        profile: on_paper(inat(profile=profile)).efficiency((16, 4, 256), (1, 4, 256))
        for profile in ("a100_hdr", "a100_25gbe")
    }
    assert rates["a100_hdr"][0] > 0.95
    assert rates["a100_25gbe"][0] < 0.5
    halved = on_paper(inat("compute.gradients=bf16", profile="a100_25gbe")).efficiency((16, 4, 256), (1, 4, 256))
    assert halved[0] > 1.4 * rates["a100_25gbe"][0]
    for middle, low, high in rates.values():
        assert low <= middle <= high <= 1


def test_a_slow_loader_sets_the_pace() -> None:
    device = "cluster.device={name: H200, tflops: 989, memory_gbyte_per_s: 4800, images_per_s: 7000}"
    paper = on_paper(inat(device))
    assert paper.predict(4, 8, 256).images_per_s == pytest.approx(4 * 7000, rel=0.01)
    assert any("7,000 images/s for a node" in line for line in paper.assumptions)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["cluster.profile=generic"], "cluster.device and cluster.network: a prediction on paper needs it"),
        (["cluster.network=null"], "cluster.network: a prediction on paper needs it"),
        (["compute.precision=fp32"], "cluster.device.half: true does not go with compute.precision: fp32"),
        (["data.dataset={name: image_folder, root: nowhere}"], "does not tell its number of classes"),
        (["model.backbone={name: torchvision, arch: vgg11}"], "what vgg11 costs is not known on paper"),
    ],
)
def test_what_is_missing_is_named(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        predict_on_paper(inat(*overrides), [])


def test_classes_are_an_option_where_the_data_set_does_not_tell() -> None:
    config = inat("data.dataset={name: image_folder, root: nowhere}")
    assert on_paper(config, classes=1000).cost.parameters == 23_508_032 + 2 * 1000 * 2049
    digits = load("digits_lt.yaml", ["cluster.profile=a100_hdr", "model.backbone=resnet32"])
    assert on_paper(digits).cost.parameters == 463_504 + 2 * 10 * 65


def test_rows_overrule_a_profile_and_a_profile_fills_in_for_rows() -> None:
    config = inat()
    windows = {"as_is": [[0.050]], "resident": [[0.050]]}
    found = Measurement(
        world_size=1, ranks_per_node=1, global_batch=256, images="real", warm_up=1, windows=windows,
        shares=Share(data_wait_s=0, compute_s=0, communication_s=0, optimizer_s=0), gradient_bytes=227_000_000,
        buckets=[], all_reduces=[], backend="nccl", interface=None,
        nodes=[Node(name="n", machine="m", cores=12, device="H200")], precision="bf16", startup_s={},
        checkpoint_bytes=0, checkpoint_stall_s=0, checkpoint_s=0,
    )  # fmt: skip
    row = Row(size=Size(nodes=1, ranks_per_node=1, mode="weak", global_batch=256), repeat=1, run="r", state="finished",
              found=found)  # fmt: skip
    one = fit_rows(config, [row]).predict(16, 8, 256)
    assert one.compute_s == pytest.approx(0.050, rel=0.05), "measured, not the profile's 28 ms"
    on_the_profile = on_paper(config).predict(16, 8, 256)
    assert one.communication_s == pytest.approx(on_the_profile.communication_s, rel=1.0)
    assert one.extrapolated
    slow = fit_rows(config, [row]).predict(16, 8, 256, Network(gbit_per_node=25))
    assert slow.step_s > 2 * one.step_s


def test_the_published_rows_are_as_far_off_as_the_record_says() -> None:
    compared = {one.published.name: one for one in map(compare, ROWS)}
    anchors = [one for one in compared.values() if one.published.role == "anchor"]
    assert len(anchors) == 1
    assert abs(anchors[0].error) < 0.005, "the constant follows from it"
    predicted = [one for one in compared.values() if one.published.role == "predicted"]
    assert (len(predicted), sum(one.inside for one in predicted)) == (14, 8), "told among the assumptions"
    assert abs(compared["MLPerf, 3,584 H100 at 16"].error) < 0.05
    assert abs(compared["MLPerf v4.0, 8x H100"].error) < 0.1
    text = " ".join(on_paper(inat()).assumptions)
    assert "of 14 published runs 8 lie in theirs" in text


def test_the_published_rows_differ_in_what_they_say() -> None:
    row = ROWS[0]
    eager = on_paper(config_of(replace(row, stack="eager")), classes=1000).predict(*row.size)
    fused = on_paper(config_of(row), classes=1000).predict(*row.size)
    assert eager.step_s > 1.1 * fused.step_s


def test_an_all_reduce_of_one_row_teaches_the_network() -> None:
    config = inat()
    alone = [AllReduce(bytes=size, seconds=[2 * size / 20e9 + 1e-4]) for size in (4_000, 1_000_000, 227_000_000)]
    windows = {name: [[0.06]] for name in ("as_is", "resident")} | {
        name: [[0.05]] for name in ("no_sync", "resident_no_sync")
    }
    found = Measurement(
        world_size=16, ranks_per_node=8, global_batch=4096, images="real", warm_up=1, windows=windows,
        shares=Share(data_wait_s=0, compute_s=0, communication_s=0, optimizer_s=0), gradient_bytes=227_000_000,
        buckets=[25_000_000] * 9, all_reduces=alone, backend="nccl", interface=None,
        nodes=[Node(name=n, machine=n, cores=96, device="H200") for n in "ab"], precision="bf16", startup_s={},
        checkpoint_bytes=0, checkpoint_stall_s=0, checkpoint_s=0,
    )  # fmt: skip
    row = Row(size=Size(nodes=2, ranks_per_node=8, mode="weak", global_batch=4096), repeat=1, run="r", state="finished",
              found=found)  # fmt: skip
    one = fit_rows(config, [row]).predict(2, 8, 256)
    assert one.communication_s == pytest.approx(2 * 227e6 / 20e9, rel=0.3), "a twentieth of what the profile says"
