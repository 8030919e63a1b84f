"""Predictions on paper: what profiles, backbones and methods tell, what is refused, and the published rows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from benchmarks.published_rows import ROWS
from benchmarks.scaling_published import compare, config_of
from hrdc_hpc.config.cluster import Network
from hrdc_hpc.config.load import load
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.measurement import AllReduce, Measurement, Node, Share
from hrdc_hpc.scaling import modelled
from hrdc_hpc.scaling.predict import fit_rows, on_paper, predict_on_paper
from hrdc_hpc.scaling.rows import Row, Size

from made_studies import inat as made_inat
from made_studies import model_step_s, row, size

pytestmark = pytest.mark.slow


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
    for said in ("56.9 M parameters", "3200 Gbit/s", "227 MB of gradients", "hides behind 50%"):
        assert said in text


def test_the_range_of_an_efficiency_is_that_of_the_ratio() -> None:
    """On a network that keeps up, what is not known of the device is in the rate and not in the efficiency."""
    sizes = [Size(nodes=n, ranks_per_node=8, mode="weak", global_batch=2048 * n) for n in (16, 1)]
    _, (many, one) = modelled.paper(sizes, predict_on_paper(inat(), sizes))
    assert (one.efficiency_low, one.efficiency_high) == pytest.approx((1, 1)), "against itself"
    middle, low, high = on_paper(inat()).efficiency((16, 8, 256), (1, 8, 256))
    assert (many.efficiency_low, many.efficiency_high) == pytest.approx((low, high))
    assert high - low < 0.2 * (many.high - many.low) / many.images_per_s
    assert low < middle < high <= 1


def test_a_fitted_efficiency_is_against_the_measured_base_and_has_its_repeats_in_it() -> None:
    def of_eight(*base: float) -> tuple[float, float, float]:
        one, eight = size("weak", 1), size("weak", 8)
        rows = [row(one, model_step_s(one) * times, i) for i, times in enumerate(base)]
        rows += [row(of, model_step_s(of), i) for of in (size("weak", 2), size("weak", 4)) for i in range(3)]
        _, found, troubles = modelled.model(made_inat(), rows, [8])
        assert troubles == []
        guess = next(guess for guess in found if guess.size == eight)
        assert guess.efficiency_low is not None
        assert guess.efficiency_high is not None
        rate = guess.images_per_s / 8 / (one.global_batch / model_step_s(one))
        return rate, guess.efficiency_low, guess.efficiency_high

    middle, low, high = of_eight(1, 1, 1)
    assert low < middle < high < low + 0.25
    _, wider_low, wider_high = of_eight(0.8, 1, 1.25)
    assert wider_high / wider_low > 1.25 * high / low, "the base may as well be its fastest or its slowest run"


def test_loading_is_told_in_cores_and_warned_of_where_they_do_not_do() -> None:
    """At 6,000 to 9,000 images/s, of which a core decodes 210."""
    of = [Size(nodes=1, ranks_per_node=8, mode="weak", global_batch=2048)]
    found = predict_on_paper(inat(), of)
    rate = found.predictions[0].images_per_s / 8
    (said,) = (line for line in found.assumptions if "Loading" in line)
    assert f"up to {rate:,.0f} images/s a GPU" in said
    assert f"some {math.ceil(rate / 210)} cores a GPU" in said
    assert any("12 cores a GPU (cluster.cpus_per_rank) decode some 2,520 JPEGs" in line for line in found.warnings)
    enough = predict_on_paper(inat(f"cluster.cpus_per_rank={math.ceil(rate / 210)}"), of)
    assert not any("Loading" in line for line in enough.warnings)
    cifar = load("cifar10_lt.yaml", ["cluster.profile=a100_hdr", "cluster.gpus_per_node=4"])
    resident = predict_on_paper(cifar, [Size(nodes=1, ranks_per_node=4, mode="weak", global_batch=128)])
    assert not any("Loading" in line for line in (*resident.assumptions, *resident.warnings))


def test_other_gpus_than_the_profile_has_are_told() -> None:
    """inat.yaml has 4 of a node, and what a config says goes before its profile."""
    four, eight = ([Size(nodes=1, ranks_per_node=n, mode="weak", global_batch=2048)] for n in (4, 8))
    (told,) = (line for line in predict_on_paper(inat(), four).warnings if "h200_ndr" in line)
    assert "taken to have 4 GPUs" in told
    assert "those of the profile h200_ndr have 8" in told
    assert not any("h200_ndr" in line for line in predict_on_paper(inat(), eight).warnings)


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
