"""What a study advises: figures against ones worked out by hand, and what it says of its own weaknesses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hrdc_hpc.record.measurement import Node
from hrdc_hpc.scaling import words
from hrdc_hpc.scaling.advice import Advice, advise
from hrdc_hpc.scaling.caveats import caveats
from hrdc_hpc.scaling.cost import Cost
from hrdc_hpc.scaling.report.columns import prediction_records
from hrdc_hpc.scaling.rows import Mode, Row, Size
from hrdc_hpc.scaling.summary import percentile
from hrdc_hpc.scaling.view import Fit, Limits, Predicted, Residual, StudyView

from made_studies import failed, inat, row, size

IMAGES = 102_400
"""100 steps of an epoch at a batch of 1,024."""
WEAK = (row(size("weak", 1), 0.1), row(size("weak", 2), 0.125), row(size("weak", 4), 0.2))
"""10,240, 16,384 and 20,480 images/s: 100, 80 and 50 %."""


def study(*rows: Row, **more: object) -> StudyView:
    config = inat("optim.epochs=10", "checkpoint.every_steps=100")
    values = {"name": "s", "config": config, "rows": rows, "train_images": IMAGES, **more}
    return StudyView(**values)  # type: ignore[arg-type]  # values of a test


def said(found: Advice) -> str:
    return "\n".join(found.sentences)


def guess(of: Size, rate: float, spread: float = 0.0, *, extrapolated: bool = False) -> Predicted:
    return Predicted(
        size=of, step_s=of.global_batch / rate, images_per_s=rate, low=rate * (1 - spread), high=rate * (1 + spread),
        extrapolated=extrapolated,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "steps", "rates", "speed_ups", "efficiencies"),
    [
        ("weak", (0.1, 0.125, 0.2), (10240, 16384, 20480), (1, 1.6, 2), (1, 0.8, 0.5)),
        ("strong", (0.1, 0.0625, 0.05), (10240, 16384, 20480), (1, 1.6, 2), (1, 0.8, 0.5)),
    ],
)
def test_speed_up_and_efficiency(
    mode: Mode, steps: tuple[float, ...], rates: tuple[float, ...], speed_ups: tuple[float, ...],
    efficiencies: tuple[float, ...],
) -> None:  # fmt: skip
    rows = [row(size(mode, nodes), step_s) for nodes, step_s in zip((1, 2, 4), steps, strict=True)]
    found = advise(study(*rows), mode).measured
    assert [one.rate.median for one in found if one.rate] == pytest.approx(rates)
    assert [one.speed_up.median for one in found if one.speed_up] == pytest.approx(speed_ups)
    assert [one.efficiency.median for one in found if one.efficiency] == pytest.approx(efficiencies)


def test_median_and_range_are_over_repeats_and_failed_ones_are_not_counted() -> None:
    one, two = size("weak", 1), size("weak", 2)
    rows = [*(row(one, s, i) for i, s in enumerate((0.1, 0.08, 0.16), 1)), row(two, 0.2), failed(two, 2)]
    base, other = advise(study(*rows), "weak").measured
    assert base.rate is not None
    assert other.efficiency is not None
    assert (base.rate.low, base.rate.median, base.rate.high) == pytest.approx((6400, 10240, 12800))
    assert other.efficiency.median == pytest.approx(0.5)
    assert (other.finished, other.asked) == (1, 2)
    assert other.troubles == ["repeat 2 failed: rank 3 of node n007: out of memory"]


def test_shares_leave_a_rest_and_windows_are_paired_by_round() -> None:
    """A machine that slows down from round to round must not be taken for communication."""
    of = size("weak", 2)
    slowing = {
        "as_is": [[0.2], [0.3], [0.6]],
        "no_sync": [[0.15], [0.25], [0.55]],
        "resident": [[0.19], [0.29]],
    }
    (found,) = advise(study(row(of, 0.1, windows=slowing)), "weak").measured
    assert found.costs_s == pytest.approx({"no_sync": 0.05, "resident": 0.01})
    assert found.ceilings == pytest.approx({"no_sync": 3 * 2048 / 0.95, "resident": 2 * 2048 / 0.48})
    (found,) = advise(study(row(of, 0.1)), "weak").measured
    assert found.shares == pytest.approx(
        {
            "waiting for data": 0.05, "forward and backward": 0.65, "exposed communication": 0.2, "optimizer": 0.04,
            "rest": 0.06,
        }
    )  # fmt: skip


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 50) == 2.5
    assert percentile(list(map(float, range(101))), 95) == pytest.approx(95)
    assert percentile([7.0], 95) == 7.0


@pytest.mark.parametrize(("wanted", "nodes"), [(0.8, 2), (0.81, 1), (0.5, 4), (0.3, 4)])
def test_most_nodes_at_or_above_the_wanted_efficiency(wanted: float, nodes: int) -> None:
    found = advise(study(*WEAK, wanted=wanted), "weak")
    assert found.most is not None
    assert found.most.size.nodes == nodes


def test_a_size_that_fell_below_in_one_repeat_is_a_close_call() -> None:
    two = size("weak", 2)
    steady, torn = (advise(study(WEAK[0], *(row(two, s) for s in steps)), "weak") for steps in ((0.12,), (0.12, 0.13)))
    assert "close call" not in said(steady)
    assert "close call" in said(torn)


def test_time_and_gpu_hours_of_one_job_and_of_several() -> None:
    """1,000 steps of .1 s, 10 saves of .4 s, a start of 80 s, a last save of 2.5 s, 4 GPUs."""
    price = advise(study(WEAK[0]), "weak").costs[size("weak", 1)]
    assert isinstance(price, Cost)
    assert (price.steps_per_epoch, price.steps, price.jobs) == (100, 1000, None)
    assert 3600 * price.hours.median == pytest.approx(100 + 4 + 80 + 2.5)
    assert price.gpu_hours.median == pytest.approx(4 * price.hours.median)
    # 4 minutes less the start and the 120 s of warning leave 40 s: 104 s are three jobs
    limits = Limits(partition="short", max_nodes=8, max_time_min=4)
    several = advise(study(WEAK[0], limits=limits), "weak")
    price = several.costs[size("weak", 1)]
    assert isinstance(price, Cost)
    assert price.jobs == 3
    assert 3600 * price.hours.median == pytest.approx(100 + 4 + 3 * 80 + 2.5)
    assert "in 3 jobs of 4 min" in said(several)
    assert price.energy_kwh == pytest.approx(1000 * 300 * 4 * 0.1 / 3.6e6)


def test_the_range_of_the_time_follows_the_throughput() -> None:
    one = size("weak", 1)
    price = advise(study(row(one, 0.1), row(one, 0.05, 2), row(one, 0.2, 3)), "weak").costs[one]
    assert isinstance(price, Cost)
    assert [3600 * h for h in (price.hours.low, price.hours.high)] == pytest.approx([50 + 86.5, 200 + 86.5])


@pytest.mark.parametrize(
    ("more", "words_"),
    [
        ({"train_images": 1000}, "more than the 1,000 training images"),
        ({"train_images": None}, "number of training images is not known"),
        ({"limits": Limits(max_time_min=3)}, "ends before the first step"),
    ],
)
def test_no_time_is_told_in_words(more: dict[str, object], words_: str) -> None:
    assert words_ in said(advise(study(*WEAK, **more), "weak"))


def test_predictions_are_against_the_measured_base_and_kept_apart() -> None:
    eight, sixteen = size("weak", 8), size("weak", 16)
    guesses = [guess(sixteen, 0.81 * 16 * 10240, 0.05, extrapolated=True), guess(eight, 0.9 * 8 * 10240)]
    found = advise(study(*WEAK[:2], predictions=guesses), "weak")
    assert [one.efficiency.median for one in found.expected] == pytest.approx([0.9, 0.81])
    assert found.most is not None
    assert found.most_expected is not None
    assert (found.most.size.nodes, found.most_expected.size.nodes) == (2, 16)
    text = said(found)
    assert "Predicted, not measured: up to 16 nodes (64 GPUs)" in text
    assert "reaches below 80 %" in text
    assert "the range itself is a guess" in text


def test_the_range_of_a_predicted_efficiency_is_that_of_the_ratio() -> None:
    """What is not known of the base either must not be told as a doubt of the efficiency."""
    of = size("weak", 8)
    wide = guess(of, 0.9 * 8 * 10240, 0.4)
    by_rate = advise(study(*WEAK[:2], predictions=[wide]), "weak")
    known = replace(wide, efficiency_low=0.88, efficiency_high=0.91)
    found = advise(study(*WEAK[:2], predictions=[known]), "weak")
    assert "reaches below 80 %" in said(by_rate)
    assert "reaches below 80 %" not in said(found)
    (one,) = found.expected
    assert (one.efficiency.low, one.efficiency.median, one.efficiency.high) == pytest.approx((0.88, 0.9, 0.91))
    assert one.speed_up.low == pytest.approx(8 * 0.88)
    (record,) = prediction_records(study(*WEAK[:2], predictions=[known]), found)
    assert record["efficiency_low_percent"] == pytest.approx(88)
    assert record["images_per_s_low"] == pytest.approx(0.6 * 0.9 * 8 * 10240)


def test_advice_from_a_disturbed_base_says_so() -> None:
    assert said(advise(study(row(ONE, 1.696), row(TWO, 0.1)), "weak")).startswith("The base was disturbed")
    assert "disturbed" not in said(advise(study(*WEAK), "weak"))
    torn = study(row(ONE, 0.1, windows={"as_is": [[0.177] * 8 + [1.48] * 2]}))
    assert not any("uneven" in line for line in caveats(torn)), "said twice"


def test_predicted_sizes_that_do_not_keep_it_are_named() -> None:
    found = advise(study(*WEAK, predictions=[guess(size("weak", 8), 0.3 * 8 * 10240)]), "weak")
    assert found.most_expected is None
    assert "no larger size keeps 80 %; 8 nodes (32 GPUs) would have 30.0 %" in said(found)


def test_a_larger_batch_scales_the_rate_and_says_what_is_known() -> None:
    """Lr .1 at 256 is .8 at 2,048; 16,384 is beyond what the rule held for."""
    own, two = (said(advise(study(*WEAK[:n]), "weak")) for n in (1, 2))
    assert "learning rate" not in own
    assert "peak learning rate is 0.8 instead of 0.4 (lr_batch 256 does that by itself)" in two
    assert "optim.warmup_epochs=5" in two
    assert "--batches 1024,2048" in two
    assert "8,192" not in two
    config = inat("optim.epochs=10", "optim.lr_batch=null", "optim.warmup_epochs=5")
    large = said(advise(study(*WEAK[:1], row(size("weak", 16), 0.1), config=config), "weak"))
    assert "peak learning rate is 1.6 instead of 0.1" in large
    assert "set optim.lr_batch=1024" in large
    assert "The rule wants a warm-up" not in large
    assert "16,384 is beyond what the rule is known to hold for" in large


def test_strong_scaling_says_what_small_shares_do() -> None:
    rows = [row(size("strong", 1), 0.1), row(size("strong", 8), 0.0125)]
    text = said(advise(study(*rows), "strong"))
    assert "Batch norm sees 32 images at a time instead of 256" in text
    assert "32 images per GPU is little" in text
    assert "learning rate" not in text
    ghost = inat("model.batch_norm=ghost", "model.ghost_size=32")
    assert "Batch norm" not in said(advise(study(*rows, config=ghost), "strong"))


def test_throughput_that_falls_is_told() -> None:
    rows = [row(size("strong", 1), 0.1), row(size("strong", 2), 0.05), row(size("strong", 4), 0.08)]
    assert "Throughput is highest on 2 nodes (8 GPUs): more make it slower" in said(advise(study(*rows), "strong"))


def test_partition_limits() -> None:
    small, large = (said(advise(study(*WEAK[:2], limits=Limits(partition="p", max_nodes=n)), "weak")) for n in (1, 2))
    assert "Partition p allows 1 node for a job: 2 nodes (8 GPUs) cannot be asked for there." in small
    assert "Partition p allows 2 nodes for a job." in large


def _node(name: str, machine: str, device: str = "NVIDIA A100-SXM4-80GB") -> Node:
    return Node(name=name, machine=machine, cores=2, device=device)


def _on(of: Size, *nodes: Node) -> Row:
    return row(of, 0.1, nodes=nodes)


ONE, TWO = size("weak", 1), size("weak", 2)
CAVEATS: dict[str, Callable[[], StudyView]] = {
    "2 nodes of this study are one machine: figures show the method, not scaling.": lambda: study(
        _on(ONE, _node("a", "m")), _on(TWO, _node("a", "m"), _node("b", "m"))
    ),
    "One repeat only (4 GPUs)": lambda: study(row(ONE, 0.1)),
    "Repeats differ by more than 10 % (4 GPUs)": lambda: study(row(ONE, 0.1), row(ONE, 0.12, 2)),
    "Step times are uneven (4 GPUs)": lambda: study(row(ONE, 0.1, windows={"as_is": [[0.1] * 9 + [0.2]]})),
    "Repeats ran on different nodes (4 GPUs)": lambda: study(row(ONE, 0.1), row(ONE, 0.1, 2, names=["other"])),
    "weak-2x4-r1 ran as 1 x 4 ranks": lambda: study(row(TWO, 0.1, names=["n000"])),
    "Not all rows have the same devices": lambda: study(row(ONE, 0.1), _on(TWO, _node("a", "m", "B"), _node("b", "n"))),
    "Made-up images that lie on the device": lambda: study(row(ONE, 0.1, images="resident")),
    "Some rows read images, some used made-up ones": lambda: study(row(ONE, 0.1, images="resident"), row(TWO, 0.1)),
    "ranks of a node share its cores": lambda: study(
        row(ONE, 0.1, backend="gloo", nodes=[_node("a", "m", "AMD EPYC")])  # the config asks for GPUs; there were none
    ),
    "weak: the base itself, 4 GPUs, was disturbed: half of its steps take up to 177 ms, but 5 % over 1.48 s": (
        lambda: study(row(ONE, 0.1, windows={"as_is": [[0.177] * 8 + [1.48] * 2]}))
    ),
    "weak: an efficiency of 1,696 % (2 nodes) cannot be: the base itself, 1 node (4 GPUs), was disturbed.": lambda: (
        study(row(ONE, 1.696), row(TWO, 0.1))
    ),
    "The model misses the measured runs by 50 % (median): do not rely on what it predicts.": lambda: study(
        row(ONE, 0.1), fit=Fit(model="m", residuals=[Residual(size=ONE, run="r", measured_s=0.1, fitted_s=0.15)])
    ),
    "Busy 53 % of 2 hours (the most of 3 runs that say so).": lambda: study(
        *(row(ONE, 0.1, i, notes=[f"busy {share} % of 2 hours"]) for i, share in enumerate((6, 53, 7)))
    ),
    "1 row of 2 ended without figures (2 nodes)": lambda: study(row(ONE, 0.1), failed(TWO)),
    "1 row of 2 still to come": lambda: study(row(ONE, 0.1), failed(TWO, state="queued")),
    "weak: 1 node (4 GPUs) has no figures, so": lambda: study(failed(ONE), row(TWO, 0.1)),
    "No size has figures yet (2 rows: queued and failed)": lambda: study(failed(ONE, state="queued"), failed(TWO)),
    "Energy is not measured here.": lambda: study(row(ONE, 0.1, notes=["energy is not measured here"])),
    "the model is a poor fit": lambda: study(row(ONE, 0.1), warnings=["the model is a poor fit"]),
    "predictions on paper": lambda: study(predictions=[guess(ONE, 10240)]),
}  # fmt: skip


@pytest.mark.parametrize("text", CAVEATS)
def test_what_must_be_told_before_the_figures_is_told(text: str) -> None:
    assert any(text in line for line in caveats(CAVEATS[text]()))


def test_a_sound_study_warns_of_nothing_and_one_machine_comes_first() -> None:
    sound = [row(of, step_s, repeat) for of, step_s in ((ONE, 0.1), (TWO, 0.11)) for repeat in (1, 2, 3)]
    alone = [row(size("weak", 1, gpus=1), 0.1, repeat, interface=None, backend="gloo") for repeat in (1, 2)]
    assert caveats(study(*alone, *sound)) == []
    shared = _on(TWO, _node("a", "m"), _node("b", "m"))
    assert caveats(study(*sound, shared, failed(size("weak", 4)), warnings=["w"]))[0].startswith("2 nodes of")


def test_words() -> None:
    assert words.hosts([f"gpu{i:02}" for i in (7, 8, 9, 12)] + ["login", "a1"]) == "a1, gpu[07-09,12], login"
    assert [words.time_text(s) for s in (0.0004, 0.1234, 80, 150, 86_400, 400_000)] == [
        "0.400 ms", "123 ms", "80 s", "2.50 min", "24 h", "4.63 days",
    ]  # fmt: skip
    assert words.bytes_text(227_000_000) == "227 MB"
    assert words.joined(["a", "b", "c"]) == "a, b and c"
    within = study(row(size("weak", 1, gpus=1), 0.1), row(size("weak", 1, gpus=2), 0.1))
    assert words.named(within, size("weak", 1, gpus=2)) == "2 GPUs"
