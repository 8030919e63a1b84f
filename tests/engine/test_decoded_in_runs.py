"""Runs that train from decoded images: exact on any number of ranks and after any stop, and nothing stays in memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics, read_raw

from faulty import train_but_decoding_takes_long
from ranks import Ranks, StopWhen
from runs import differing, final_state, learnt, make_run

pytestmark = [pytest.mark.dali, pytest.mark.timeout(300)]

SHORT = ("optim.epochs=2", "optim.warmup_epochs=0", "compute.deterministic=true", "checkpoint.every_steps=100000")


def in_memory() -> set[str]:
    """Caches in this machine's memory."""
    return {path.name for path in Path(f"/dev/shm/hrdc_hpc-{os.getuid()}").glob("decoded-*")}


def samples(run: Path) -> list[str]:
    return [record["samples"] for record in read_metrics(RunFolder(run)) if record["kind"] == "train"]


@pytest.mark.slow
def test_stopped_in_an_epoch_and_resumed_from_a_cache_filled_anew(digits, tmp_path):
    before = in_memory()
    # 32 x 32 digits are made smaller, in a cache that only this test has
    cached = (*SHORT, "data.decoded_cache={side: 27, keep_free_gb: 0}")
    straight = make_run(tmp_path, digits, "straight", *cached)
    Ranks(straight, 2).finish()
    assert in_memory() == before, "what nobody needs is removed"
    stopped, flag = make_run(tmp_path, digits, "stopped", *cached), tmp_path / "stop"
    ranks = Ranks(stopped, 2, stop=StopWhen(flag))
    while not any(record["kind"] == "train" and record["step"] >= 3 for record in read_raw(RunFolder(stopped))):
        assert ranks.alive(), ranks.logs()
        time.sleep(0.005)
    flag.touch()
    ranks.finish()
    assert 3 <= final_state(stopped)["step"] < 24
    ranks = Ranks(stopped, 2)
    ranks.finish()
    assert "decoded cache: 402 images" in ranks.logs()
    assert differing(final_state(straight), final_state(stopped)) == []
    assert learnt(straight) == learnt(stopped)
    one = make_run(tmp_path, digits, "one", *cached)
    Ranks(one, 1).finish()
    assert samples(one) == samples(straight)
    assert in_memory() == before


@pytest.mark.slow
def test_a_run_is_not_resumed_with_other_pixels(digits, tmp_path):
    scratch = f"where: scratch, to: {tmp_path / 'scratch'}, keep_free_gb: 0"
    run = make_run(tmp_path, digits, "run", *SHORT, "optim.epochs=1", f"data.decoded_cache={{side: 27, {scratch}}}")
    Ranks(run, 2).finish()
    (kept,) = (tmp_path / "scratch").glob("hrdc_hpc-*/decoded-*/pixels")
    assert kept.stat().st_size == 402 * (27 * 27 * 3 + 19), "a cache on a disk stays"
    config = RunFolder(run).config
    config.write_text(config.read_text().replace("side: 27", "side: 28"))
    ranks = Ranks(run, 2)
    assert set(ranks.wait()) == {1}
    assert "data.decoded_cache.side: 27 in the checkpoint, 28 now" in ranks.logs()


@pytest.mark.slow
def test_told_while_images_are_decoded(digits, tmp_path):
    before = in_memory()
    run = make_run(tmp_path, digits, "told", *SHORT, "data.decoded_cache={side: 26, keep_free_gb: 0}")
    flag = tmp_path / "stop"
    ranks = Ranks(run, 2, stop=StopWhen(flag), target=train_but_decoding_takes_long)
    while not (run / "decodes").exists():
        assert ranks.alive(), ranks.logs()
        time.sleep(0.01)
    flag.touch()
    ranks.finish(10)  # 402 images would take 25 s
    assert "stopped before the start by SIGUSR2" in ranks.logs()
    assert in_memory() == before


def test_a_cache_that_does_not_fit_is_refused_with_its_size(digits, tmp_path):
    run = make_run(tmp_path, digits, "large", *SHORT, "data.decoded_cache={side: 26, max_gb: 1e-6}")
    ranks = Ranks(run, 2)
    assert set(ranks.wait()) == {1}
    assert "402 images with a shorter side of 26 take 0.0 GB, and max_gb allows 1e-06" in ranks.logs()
