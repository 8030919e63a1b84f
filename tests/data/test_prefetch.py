from __future__ import annotations

import threading
import time

import pytest

from hrdc_hpc.config.schema import Loader
from hrdc_hpc.data.prefetch import Ahead, Runs, runs_of


def take_all(ahead):
    results = []
    while (result := ahead.get(wait=True)) is not None:
        results.append(result)
    return results


def test_results_come_in_order_and_no_further_ahead_than_asked():
    made = []
    ahead = Ahead(lambda number: made.append(number) or number * 10, range(1, 9), depth=2)
    deadline = time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert made == [1, 2]
    assert take_all(ahead) == [10, 20, 30, 40, 50, 60, 70, 80]
    ahead.check()
    ahead.close()


def test_an_error_comes_after_the_results_before_it():
    def make(number):
        if number == 3:
            raise OSError("disk on fire")
        return number

    ahead = Ahead(make, range(1, 9), depth=5)
    assert take_all(ahead) == [1, 2]
    with pytest.raises(OSError, match="disk on fire"):
        ahead.check()
    ahead.close()


def test_without_waiting_an_unfinished_result_is_none():
    gate = threading.Event()
    ahead = Ahead(lambda number: gate.wait(10) and number, range(1, 3), depth=1)
    assert ahead.get(wait=False) is None
    gate.set()
    assert take_all(ahead) == [1, 2]
    ahead.close()


def test_close_ends_the_thread_at_once():
    before = threading.active_count()
    ahead = Ahead(lambda number: number, range(1, 10**9), depth=1)
    assert ahead.get(wait=True) == 1
    assert threading.active_count() == before + 1
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 1
    assert threading.active_count() == before
    assert ahead.get(wait=True) is None


@pytest.mark.parametrize(
    ("batch", "threads", "batches"),
    [(256, 2, 1), (64, 8, 1), (63, 8, 2), (32, 2, 2), (32, 16, 4), (16, 12, 6), (1, 1, 64)],
)
def test_small_batches_are_decoded_together(batch, threads, batches):
    assert runs_of(Loader(), batch, threads) == Runs(batches, 2)


@pytest.mark.parametrize(
    ("prefetch", "runs"),
    [(1, Runs(1, 1)), (2, Runs(1, 2)), (3, Runs(1, 3)), (4, Runs(2, 2)), (9, Runs(4, 2)), (16, Runs(4, 4))],
)
def test_prefetch_bounds_what_is_decoded_ahead(prefetch, runs):
    assert runs_of(Loader(prefetch=prefetch), 32, 16) == runs
    assert runs.batches * runs.depth <= prefetch
