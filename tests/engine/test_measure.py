"""A measured run: what it finds, what it leaves out, what it leaves behind."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.config.schema import Measure
from hrdc_hpc.engine import hardware
from hrdc_hpc.engine.allreduce import sizes, sweep
from hrdc_hpc.engine.checkpoint import list_checkpoints
from hrdc_hpc.engine.checkpoint_files import folder_name
from hrdc_hpc.engine.measure import Measuring
from hrdc_hpc.engine.startup import Startup, process_age_s
from hrdc_hpc.engine.windows import Windows, length
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.measurement import VARIANTS, Measurement, read
from hrdc_hpc.record.metrics import read_raw

from measuring import DATA_S, NETWORK_S, measure_compiled, measure_slowed_down, measure_without_reading
from ranks import Ranks, StopWhen
from runs import make_run
from steps import alone, config_of, parts_of, run_of

pytestmark = [pytest.mark.slow, pytest.mark.dali, pytest.mark.timeout(300)]

ROUNDS, STEPS, WARM_UP = 2, 5, 1


def found_by(run: Path) -> Measurement:
    found = read(run)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def slowed(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A finished measured run of two ranks whose loader and network are slow by known amounts."""
    told = f"measure={{rounds: {ROUNDS}, steps: {STEPS}, warm_up: {WARM_UP}}}"
    run = make_run(tmp_path_factory.mktemp("measured"), digits, "slowed", told, "data.loader.prefetch=1")
    Ranks(run, 2, target=measure_slowed_down).finish()
    return run


@pytest.fixture(scope="module")
def seen(slowed: Path) -> list[dict[str, Any]]:
    """What each rank saw of it."""
    return [json.loads((slowed / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_what_is_left_out_is_saved(slowed: Path) -> None:
    """The loader's and the network's delay are in the windows that have them, and only there."""
    found = found_by(slowed)
    assert set(found.windows) == set(VARIANTS)
    assert all([len(window) for window in windows] == [STEPS] * ROUNDS for windows in found.windows.values())
    # the quickest step: one that nothing else on the machine has held up. What leaves out both delays has no pause in
    # it, and on a machine that others use gets no more than its share of a core: nothing is reckoned from it
    step = {name: min(s for window in found.windows[name] for s in window) for name in VARIANTS}
    delay = NETWORK_S * len(found.buckets)
    assert step["as_is"] > DATA_S + delay
    assert 0.6 * DATA_S < step["as_is"] - step["resident"] < 1.5 * DATA_S
    assert 0.6 * delay < step["as_is"] - step["no_sync"] < 1.5 * delay
    assert step["resident_no_sync"] < min(step["resident"], step["no_sync"])


def test_shares_are_those_of_steps_as_in_training(slowed: Path) -> None:
    found = found_by(slowed)
    share, windows = found.shares, found.windows["as_is"]
    assert share.data_wait_s >= DATA_S
    assert share.communication_s >= NETWORK_S * len(found.buckets)
    assert min(share.compute_s, share.optimizer_s) > 0
    together = share.data_wait_s + share.compute_s + share.communication_s + share.optimizer_s
    assert 0.7 < together / statistics.fmean(s for window in windows for s in window) < 1.1


def test_gradients_are_sent_in_windows_as_in_training_only(slowed: Path, seen: list[dict[str, Any]]) -> None:
    found = found_by(slowed)
    wanted = ROUNDS * (WARM_UP + STEPS) * len(found.buckets)
    for rank in seen:
        assert rank["all_reduces"] == {"as_is": wanted, "resident": wanted}
        assert rank["kept"] == [], "weights and momentum are those of before"
    one, other = (rank["weights"] for rank in seen)
    assert (one["as_is"], one["resident"]) == (other["as_is"], other["resident"])
    assert one["no_sync"] != other["no_sync"], "without sync each rank learns from its own images"
    assert one["as_is"] != one["no_sync"]


def test_step_times_add_up_to_the_window(slowed: Path, seen: list[dict[str, Any]]) -> None:
    found = found_by(slowed)
    told = [r for r in read_raw(slowed) if r["kind"] == "measure"]
    order = [(r["variant"], r["round"]) for r in told]
    assert sorted(order) == sorted((variant, number) for variant in VARIANTS for number in range(ROUNDS))
    assert order[: len(VARIANTS)] != [(variant, 0) for variant, _ in order[len(VARIANTS) :]], "rounds begin in turns"
    sums = [sum(found.windows[variant][number]) for variant, number in order]
    ratios = [told_s / wall_s for told_s, wall_s in zip(sums, seen[0]["walls"], strict=True)]
    assert statistics.median(ratios) == pytest.approx(1, abs=0.03)
    assert sums == pytest.approx(seen[0]["walls"], abs=0.1), "the thread may lose its core before it looks at the clock"
    assert all(len(r["ranks_s"]) == 2 for r in told)
    assert told[-1]["steps"] == told[-1]["step"], "it is done with what was planned"


def test_the_rest_of_what_is_found(slowed: Path) -> None:
    found, folder = found_by(slowed), RunFolder(slowed)
    parameters = next(r["parameters"] for r in read_raw(slowed) if r["kind"] == "start")
    assert found.gradient_bytes == sum(found.buckets) == 4 * parameters
    assert [one.bytes for one in found.all_reduces] == sizes(found.gradient_bytes)
    assert all(len(one.seconds) >= 3 and min(one.seconds) > 0 for one in found.all_reduces)
    (node,) = found.nodes
    assert (found.world_size, found.ranks_per_node, found.batch_per_rank, node.cores) == (2, 2, 16, 2)
    assert (found.backend, found.interface, found.precision, found.images) == ("gloo", None, "fp32", "real")
    assert node.peak_host_bytes is not None
    assert node.peak_host_bytes > 2 * 100_000_000, "two processes with torch"
    parts = {name: seconds for name, seconds in found.startup_s.items() if name != "total"}
    assert {"imports", "meeting", "data set", "network", "rehearsal", "first batches"} < set(parts)
    assert found.startup_s["total"] == pytest.approx(sum(parts.values()))
    assert found.checkpoint_bytes > 2 * found.gradient_bytes, "weights, momentum and average"
    assert 0 < found.checkpoint_stall_s <= found.checkpoint_s
    assert found.energy_j is None
    assert any("no GPUs" in note for note in found.notes)
    assert found.versions["torch"] == torch.__version__.partition("+")[0]
    assert folder.state() == "finished"
    assert list_checkpoints(folder.checkpoints) == []
    assert not [path for path in slowed.iterdir() if "measured" in path.name]


def test_one_rank_sends_nothing(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "one", "measure={rounds: 1, steps: 3, warm_up: 1}")
    Ranks(run, 1).finish()
    found = found_by(run)
    assert set(found.windows) == {"as_is", "resident"}
    assert (list(found.buckets), list(found.all_reduces)) == ([], [])
    assert any("no_sync was left out" in note for note in found.notes)


def test_made_up_images_in_a_run_with_everything(tmp_path: Path, digits: Path) -> None:
    """fp16, pieces, ghost batch norm, clipping, two streams, gradients in bf16; no image is read."""
    settings = (
        "compute.precision=fp16", "compute.gradients=bf16", "optim.accumulation=2", "optim.clip_norm=1.0",
        "model.batch_norm=ghost", "model.ghost_size=8", "measure={images: resident, rounds: 1, steps: 3, warm_up: 1}",
    )  # fmt: skip
    run = make_run(tmp_path, digits, "everything", *settings)
    Ranks(run, 2, target=measure_without_reading).finish()
    found = found_by(run)
    assert found.windows["resident"] == found.windows["as_is"]
    assert found.windows["no_sync"] != found.windows["as_is"]
    parameters = next(r["parameters"] for r in read_raw(run) if r["kind"] == "start")
    assert found.gradient_bytes == sum(found.buckets) == 2 * parameters
    assert found.shares.data_wait_s < 1e-3
    assert (found.images, found.precision) == ("resident", "fp16")


@pytest.mark.slow
def test_the_switch_is_outside_compiled_code(tmp_path: Path, digits: Path) -> None:
    told = "measure={images: resident, rounds: 2, steps: 3, warm_up: 1}"
    run = make_run(tmp_path, digits, "compiled", "compute.compile=true", "method=ce", told)
    Ranks(run, 2, target=measure_compiled).finish(250)
    assert set(found_by(run).windows) == set(VARIANTS)
    for rank in range(2):
        before, after = json.loads((run / f"rank-{rank}.json").read_text())
        assert before[0] > 0, "nothing was compiled"
        assert after == before, "something was compiled again, or broke the graph"


def test_a_stopped_measurement_begins_anew(tmp_path: Path, digits: Path) -> None:
    run = make_run(tmp_path, digits, "stopped", "measure={rounds: 2, steps: 1000, warm_up: 1}")
    flag, folder = tmp_path / "stop", RunFolder(run)
    ranks = Ranks(run, 2, stop=StopWhen(flag))
    while not any(r["kind"] == "phase" and r["name"] == "measure" for r in read_raw(folder)):
        assert ranks.alive(), ranks.logs()
        time.sleep(0.02)
    flag.touch()
    ranks.finish(20)
    (end,) = [r for r in read_raw(folder) if r["kind"] == "end"]
    assert end["reason"] == "SIGUSR2"
    assert (read(run), folder.state()) == (None, "started")
    (run / "measured-checkpoint").mkdir()  # as one that is killed in its save leaves it
    config = loads(folder.config.read_text(), "test", ["measure.steps=3"])
    folder.config.write_text(to_yaml(config))
    Ranks(run, 2).finish()
    told = [r for r in read_raw(folder) if r["kind"] == "measure"]
    assert [r["attempt"] for r in told] == [1] * 2 * len(VARIANTS)
    assert all(len(windows) == 2 for windows in found_by(run).windows.values())
    assert not (run / "measured-checkpoint").exists()


def test_a_run_that_has_trained_is_not_measured(tmp_path: Path) -> None:
    config = config_of("measure={}")
    folder = RunFolder.create(tmp_path / "trained", config_text=to_yaml(config), manifest={})
    (folder.checkpoints / folder_name(5)).mkdir()
    with alone(tmp_path / "meet.json", config) as processes:
        parts = parts_of(config, processes)
        with run_of(folder, config, parts, processes) as run, pytest.raises(ValueError, match="a --name of its own"):
            Measuring(folder, config, parts, processes, run.around)


def test_a_window_s_length() -> None:
    told = Measure(steps=30, window_s=20)
    assert [length(told, step_s) for step_s in (0.001, 1.0, 3.9, 60.0)] == [30, 20, 5, 5]
    assert length(Measure(steps=3), 60.0) == 3


def test_sizes_of_all_reduces() -> None:
    assert sizes(100_000) == [4096, 16384, 65536, 100_000]
    assert sizes(65536) == [4096, 16384, 65536]
    assert sizes(40) == [40]


def test_all_reduces_that_take_too_long_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of 1 MB/s, on a clock that only the network moves."""
    now, asked = [0.0], []

    def slow(tensor: torch.Tensor, **_: Any) -> None:
        now[0] += tensor.numel() * tensor.element_size() / 1e6

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=lambda: now[0])
    with alone(tmp_path / "meet.json", config_of()) as processes, monkeypatch.context() as patched:
        patched.setattr("torch.distributed.all_reduce", slow)
        patched.setattr("hrdc_hpc.engine.allreduce.time", clock)
        found, cut = sweep(processes, 64_000_000, "bf16", lambda: asked.append(now[0]), within_s=1.0)
    assert now[0] < 1.0
    assert [one.bytes for one in found] == [4096, 16384, 65536]
    assert cut is not None
    assert "more than 65536 bytes were left out" in cut
    for one in found:
        assert list(one.seconds) == pytest.approx([one.bytes / 1e6] * len(one.seconds))
    assert len(asked) == 4, "a stop is heeded between sizes"


def test_the_interface_between_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_INFINIBAND", tmp_path / "infiniband")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    for name in ("NCCL_IB_HCA", "NCCL_IB_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    assert hardware.interface("gloo", 1) is None, "nothing leaves the node"
    assert (hardware.interface("gloo", 2), hardware.interface("nccl", 2)) == ("eth0", "ib0")
    for adapter in ("mlx5_1", "mlx5_0"):
        (tmp_path / "infiniband" / adapter).mkdir(parents=True)
    assert hardware.interface("nccl", 2) == "mlx5_0,mlx5_1"
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    assert (hardware.interface("gloo", 2), hardware.interface("nccl", 2)) == ("eth0", "ib0")


def test_a_start_is_counted_from_the_process_s_own() -> None:
    before = process_age_s()
    time.sleep(0.05)
    assert 0.03 < process_age_s() - before < 5
    startup = Startup()
    time.sleep(0.02)
    startup.done("nap")
    assert startup.parts["nap"] >= 0.02
    assert startup.told()["total"] == pytest.approx(startup.parts["imports"] + startup.parts["nap"])


@pytest.fixture
def on_gpu(tmp_path: Path) -> Iterator[Windows]:
    config = config_of("compute.device=cuda", "compute.compile=false", "measure={steps: 8, warm_up: 4}")
    folder = RunFolder.create(tmp_path / "gpu", config_text=to_yaml(config), manifest={})
    with alone(tmp_path / "meet.json", config) as processes:
        parts = parts_of(config, processes)
        parts.step.rehearse({name: loader.blank() for name, loader in parts.loaders.items()}, {})
        with run_of(folder, config, parts, processes) as run:
            yield Windows(config, parts, processes, run.around)


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_inside_a_window(on_gpu: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    take, walls = Windows._take, []

    def strictly(self: Windows, number: int, *, resident: bool) -> None:
        began = time.perf_counter()
        torch.cuda.set_sync_debug_mode("error")
        try:
            take(self, number, resident=resident)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        walls.append(time.perf_counter() - began)

    with ExitStack() as stack:
        on_gpu.open(stack)
        on_gpu.window("as_is", 8)  # kernels are chosen, constants are put on the device
        monkeypatch.setattr(Windows, "_take", strictly)
        window = on_gpu.window("as_is", 200)
    assert len(window.step_s) == 200
    assert 0.5 * walls[-1] < sum(window.step_s) <= walls[-1]
    if on_gpu.energy.missing is None:
        assert window.joules is not None
        assert 0 < window.joules < 1000 * (walls[-1] + walls[-2] + 1), "no GPU takes that much"
