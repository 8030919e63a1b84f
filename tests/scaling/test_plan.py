"""Sizes, modes and repeats of the command line as rows and configs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.config.load import load
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.scaling import commandline, plan
from hrdc_hpc.scaling.plan import Planned, Shape
from hrdc_hpc.scaling.rows import Size

from launching import CONFIG


def config(tmp_path: Path, *overrides: str) -> RunConfig:
    file = tmp_path / "small.yaml"
    file.write_text(CONFIG)
    return load(str(file), overrides)


def shape(*words: str) -> Shape:
    return commandline.shape(commandline.parse(["--cfg", "small.yaml", *words]))


def sizes(training: RunConfig, *words: str, local: bool = False) -> list[tuple[int, int, str, int]]:
    found = plan.sizes(shape(*words), training, training, local=local)
    return [(one.nodes, one.ranks_per_node, one.mode, one.global_batch) for one in found]


@pytest.mark.parametrize(
    ("text", "found"), [("1,2,4", [1, 2, 4]), ("1-4", [1, 2, 3, 4]), ("1,4-5, 8", [1, 4, 5, 8]), ("7", [7])]
)
def test_numbers(text: str, found: list[int]) -> None:
    assert plan.numbers(text) == found


@pytest.mark.parametrize("text", ["", "0", "1,", "4-1", "two", "1-9999999", "-2", "1.5"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="must be numbers above 0 and ranges, such as 1,2,4 or 1-4; got "):
        plan.numbers(text)


def test_weak_keeps_the_images_per_rank_and_strong_those_of_a_step(tmp_path: Path) -> None:
    training = config(tmp_path, "cluster.nodes=2", "cluster.ranks_per_node=2")  # 32 images: 8 per rank
    assert sizes(training, "--nodes", "4,1", "--mode", "strong,weak") == [
        (1, 2, "weak", 16),
        (1, 2, "strong", 32),
        (4, 2, "weak", 64),
        (4, 2, "strong", 32),
    ]
    assert sizes(training, "--nodes", "3", "--batch-per-rank", "5") == [(3, 2, "weak", 30)]
    assert sizes(training, "--nodes", "3", "--mode", "strong", "--global-batch", "64") == [(3, 2, "strong", 64)]


def test_sizes_within_a_node(tmp_path: Path) -> None:
    training = config(tmp_path, "cluster.gpus_per_node=4")
    assert sizes(training, "--gpus", "1,2", local=True) == [(1, 1, "weak", 8), (1, 2, "weak", 16)]
    row = plan.rows(plan.sizes(shape("--gpus", "2"), training, training, local=True), 1)[0]
    made = plan.config_of(training, row, shape("--gpus", "2", "--images", "resident"))
    assert (made.cluster.nodes, made.cluster.gpus_per_node, made.cluster.ranks_per_node) == (1, 2, 2)
    assert made.measure is not None
    assert made.measure.images == "resident"
    with_ranks = plan.config_of(training, row, shape("--ranks-per-node", "2"))
    assert (with_ranks.cluster.gpus_per_node, with_ranks.cluster.ranks_per_node) == (4, 2)


def test_a_row_is_the_training_but_for_its_size(tmp_path: Path) -> None:
    args = commandline.parse(["--cfg", "small.yaml", "--nodes", "2", "--time", "7", "measure.steps=11", "seed=3"])
    measured = config(tmp_path, *commandline.measured(args))
    (row,) = plan.rows([Size(nodes=2, ranks_per_node=1, mode="weak", global_batch=64)], 1)
    made = plan.config_of(measured, row, commandline.shape(args))
    assert (made.name, made.out_dir) == ("weak-2x1-r1", measured.out_dir / "small")
    assert (made.optim.global_batch, made.cluster.nodes, made.cluster.time_min, made.seed) == (64, 2, 7, 3)
    assert made.measure is not None
    assert (made.measure.steps, made.measure.repeat) == (11, 1)
    assert not made.log.tensorboard
    assert made.cluster.requeue.failures == 0
    training = config(tmp_path, *commandline.trained(args))
    assert (training.measure, training.cluster.time_min, training.seed) == (None, 60, 3)


def test_a_batch_of_more_images_than_there_are_is_unfit(tmp_path: Path) -> None:
    training = config(tmp_path)
    fit, unfit = (
        plan.unfit(training, Size(nodes=1, ranks_per_node=1, mode="weak", global_batch=batch)) for batch in (402, 403)
    )
    assert fit == ""
    assert unfit == "optim.global_batch: 403 is more than the 402 training images; take fewer images per rank"


def test_both_modes_share_a_run_where_their_batches_are_the_same() -> None:
    weak = [Size(nodes=n, ranks_per_node=2, mode="weak", global_batch=16 * n) for n in (1, 2)]
    strong = [Size(nodes=n, ranks_per_node=2, mode="strong", global_batch=16) for n in (1, 2)]
    alone = plan.rows(strong, 1)
    assert [row.run for row in alone] == ["strong-1x2-r1", "strong-2x2-r1"]
    both = plan.rows([*weak, *strong], 1, alone)
    assert [row.run for row in both] == ["strong-1x2-r1", "weak-2x2-r1", "strong-1x2-r1", "strong-2x2-r1"]


def test_a_study_has_one_batch_of_a_size() -> None:
    there = [Planned(size=Size(nodes=1, ranks_per_node=2, mode="weak", global_batch=16), repeat=1, run="weak-1x2-r1")]
    other = [Size(nodes=1, ranks_per_node=2, mode="weak", global_batch=32)]
    with pytest.raises(ValueError, match=r"weak-1x2-r1 with a global batch of 16, not 32.*another --name"):
        plan.rows(other, 1, there)


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["--repeats", "2"], ["which sizes? --nodes 1,2,4"]),
        (["--gpus", "2", "--batch-per-rank", "4", "--mode", "strong"], ["--batch-per-rank is for --mode weak"]),
        (
            ["--nodes", "1,2", "--gpus", "1", "--ranks-per-node", "2", "--global-batch", "4"],
            ["leave --ranks-per-node out", "--nodes 1,2: --cluster local is this machine alone", "for --mode strong"],
        ),
    ],
)
def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, words: list[str], problems: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - what it says is looked at below
        sizes(config(tmp_path), *words, local=True)
    told = str(error.value).splitlines()
    assert len(told) == len(problems)
    assert all(problem in line for problem, line in zip(problems, told, strict=True)), told


def test_wrong_words_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"--nodes: 2 is there twice; leave one out\n--gpus: .*\n--mode: .*'strnog'"):
        shape("--nodes", "1,2,2", "--gpus", "x", "--mode", "weak,strnog")


def test_a_batch_per_rank_that_is_no_whole_number_is_asked_for(tmp_path: Path) -> None:
    training = config(tmp_path, "cluster.ranks_per_node=3")
    with pytest.raises(ValueError, match=r"32 over the config's own 3 ranks .* --batch-per-rank 10"):
        sizes(training, "--nodes", "1")
    assert sizes(training, "--nodes", "1", "--mode", "strong") == [(1, 3, "strong", 32)]


@pytest.mark.parametrize(
    ("batch", "ranks", "overrides", "why"),
    [
        (32, 40, (), "32 images over 40 ranks leave some without any"),
        (32, 32, ("optim.accumulation=2",), "a rank's share of a step is 1 images"),
        (2, 1, ("optim.accumulation=4",), "4 pieces of 2 images; set it to at most 2"),
        (32, 3, ("model.batch_norm=ghost", "model.ghost_size=8"), "must divide every piece of the batch"),
        (32, 3, (), ""),  # 11, 11 and 10, as in training
    ],
)
def test_sizes_that_the_batch_refuses(
    tmp_path: Path, batch: int, ranks: int, overrides: tuple[str, ...], why: str
) -> None:
    size = Size(nodes=ranks, ranks_per_node=1, mode="strong", global_batch=batch)
    told = plan.unfit(config(tmp_path, *overrides), size)
    assert why in told
    assert bool(why) == bool(told)


def test_the_plan_counts_a_shared_run_once() -> None:
    sizes = [Size(nodes=1, ranks_per_node=2, mode=mode, global_batch=16) for mode in plan.MODES]
    rows = plan.rows([*sizes, Size(nodes=2, ranks_per_node=2, mode="weak", global_batch=32)], 2)
    acts = dict.fromkeys({row.run for row in rows}, "to submit") | {"weak-2x2-r1": "finished, kept"}
    lines = plan.table(rows, {row.run: 1.5 for row in rows}, "GPU-h", acts)
    assert lines[1:] == [
        ["weak", "1", "2", "16", "8", "2", "3", "to submit"],
        ["strong", "1", "2", "16", "8", "2", "0", "the same runs"],
        ["weak", "2", "4", "32", "8", "2", "3", "1 finished, kept; 1 to submit"],
    ]
