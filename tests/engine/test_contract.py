"""What a step promises: it asks the device for nothing off the log steps, reads fixed addresses, keeps what it must."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hrdc_hpc.config.load import to_yaml
from hrdc_hpc.config.schema import Compute
from hrdc_hpc.engine.clock import Mark, StepClock
from hrdc_hpc.engine.flops import flops_per_image
from hrdc_hpc.engine.graph import StaticInputs
from hrdc_hpc.engine.journal import Meter
from hrdc_hpc.engine.precision import has_matrix_units, pick_precision
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.profile import Profiler
from hrdc_hpc.engine.state import capture, compare_execution, restore
from hrdc_hpc.engine.training_loss import whole
from hrdc_hpc.record.folder import RunFolder

from runs import differing
from steps import alone, config_of, losses_of, parts_of, run_of, small_step

ASKS = {"_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim", "_unique2"}
"""Operations whose result, or its shape, the host has to wait for."""


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Processes]:
    with alone(tmp_path / "meet.json", config_of()) as processes:
        yield processes


class Questions(TorchDispatchMode):
    """Counts the operations that would make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ASKS:
            self.asked[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings",
    [
        ["method=hrdc", "optim.ema_decay=0.9", "optim.clip_norm=1.0", "optim.accumulation=2"],
        ["method=ce", "compute.precision=fp16"],
    ],
)
def test_no_host_sync_off_the_log_steps(settings: list[str], tmp_path: Path, single: Processes) -> None:
    """On a CPU by counting what would wait; tests/engine/test_gpu.py lets CUDA itself count."""
    config = config_of(*settings)
    parts = parts_of(config, single)
    folder = RunFolder.create(tmp_path / "run", config_text=to_yaml(config), manifest={})
    asked = []
    with run_of(folder, config, parts, single) as run:
        run._start()
        for step, batch in enumerate(parts.loaders["main"].batches(0, 10)):
            with Questions() as questions:
                run._train_step(step, {"main": batch})
                run._after_step(step + 1, {"main": batch}, counts=True)
            asked.append(sum(questions.asked.values()))
    assert asked[:4] == asked[5:9] == [0] * 4, asked
    assert asked[4] > 0  # the log steps, which read the loss: the counter sees what there is to see
    assert asked[9] > 0


def test_inputs_stay_where_they_are(single: Processes) -> None:
    config = config_of()
    parts = parts_of(config, single)
    step, other = (small_step(config, parts, single) for _ in range(2))
    batches = list(parts.loaders["main"].batches(0, 6))
    static = StaticInputs({"main": whole(parts.loaders["main"].blank(), {})})
    addresses = [t.data_ptr() for t in (static.micro["main"].labels_B, static.micro["main"].pixels["samples"])]
    scalars = {"lr": 0.1, "ema_weight": 0.1, **parts.method.scalars(0, 4)}
    for batch in batches:
        static.load({"main": whole(batch, {})})
        other._load_scalars(scalars)
        other._take(static.micro)
        step({"main": batch}, {}, scalars)
        assert torch.equal(step.loss, other.loss)
    assert addresses == [t.data_ptr() for t in (static.micro["main"].labels_B, static.micro["main"].pixels["samples"])]
    # labels are a column of a table: compiled for these strides, a step would be compiled once more for others
    assert static.micro["main"].labels_B.stride() == batches[0].labels_B.stride() == (5,)
    assert differing(dict(step.network.state_dict()), dict(other.network.state_dict())) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_capture_that_breaks_off_leaves_no_trace(
    precision: str, single: Processes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(f"compute.precision={precision}")
    parts = parts_of(config, single)
    step, undisturbed = (small_step(config, parts, single) for _ in range(2))

    def refused(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    def captured(body: Callable[[Any], None], inputs: Any) -> None:
        body(inputs)
        with monkeypatch.context() as inside:
            inside.setattr(step.optimizer, "step", refused)
            body(inputs)

    monkeypatch.setattr("hrdc_hpc.engine.step.CapturedStep", captured)
    step._capture = True
    step.rehearse({"main": parts.loaders["main"].blank()}, {})
    assert "launched kernel by kernel: operation not permitted" in caplog.text
    assert not step.captured
    assert losses_of(step, parts, config, 4) == losses_of(undisturbed, parts, config, 4)
    assert differing(capture(undisturbed, 4, single), capture(step, 4, single)) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_rehearsal_and_a_warm_up_leave_no_trace(precision: str, single: Processes) -> None:
    config = config_of("optim.ema_decay=0.9", f"compute.precision={precision}")
    parts = parts_of(config, single)
    step = small_step(config, parts, single)
    losses_of(step, parts, config, 4)
    before = capture(step, 4, single)
    assert before
    before = {key: json.loads(json.dumps(value)) if key == "scaler" else value for key, value in before.items()}
    before = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, before)
    inputs = step._inputs({"main": parts.loaders["main"].blank()}, {})
    with step.everything_kept():
        for _ in range(3):  # what the warm-up of a capture does
            step._take(inputs)
        assert differing(before, capture(step, 4, single))
    assert differing(before, capture(step, 4, single)) == []


def test_a_resume_writes_into_the_same_tensors(single: Processes) -> None:
    config = config_of("optim.ema_decay=0.9")
    parts = parts_of(config, single)
    step = small_step(config, parts, single)
    losses_of(step, parts, config, 3)
    state = torch.utils._pytree.tree_map_only(torch.Tensor, torch.clone, capture(step, 3, single))

    def addresses() -> list[int]:
        assert step.ema
        return [t.data_ptr() for t in (*step.network.parameters(), *step.momenta().values(), *step.ema.weights)]

    before = addresses()
    losses_of(step, parts, config, 5)
    restore(state, step, single)
    assert addresses() == before
    assert differing(state, capture(step, 3, single)) == []
    assert step.optimizer.param_groups[0]["lr"] is step._scalar_views["lr"]


def test_the_clock_adds_up() -> None:
    clock = StepClock(torch.device("cpu"))
    clock.mark(Mark.GRADIENTS)  # of a rehearsal: nothing is open
    for marks in ((Mark.GRADIENTS, 0.02), (Mark.REDUCED, 0.01), (Mark.DONE, 0.03)), ((Mark.DONE, 0.02),):
        clock.mark(Mark.BEGIN)
        for mark, seconds in marks:
            time.sleep(seconds)
            clock.mark(mark)
    shares = clock.read()
    # the second step had no marks inside, as a replayed graph
    assert shares["compute"] == pytest.approx(0.04, abs=0.01)
    assert shares["communication"] == pytest.approx(0.01, abs=0.006)
    assert shares["optimizer"] == pytest.approx(0.03, abs=0.01)
    assert shares["idle"] < 0.01
    assert set(clock.read().values()) == {0.0}


class OnAGpu(StepClock):
    """A clock whose moments are those of a device that works on after the host went ahead."""

    def __init__(self, moments: list[float]) -> None:
        super().__init__(torch.device("cpu"))
        self.moments = moments

    def _now(self) -> float:
        return self.moments.pop(0)


def test_waiting_for_data_counts_only_while_the_device_is_idle() -> None:
    busy = OnAGpu([0.0, 0.0, 0.05, 0.05, 0.06, 0.07, 0.12, 0.12, 0.13, 0.0, 0.0])
    meter = Meter(32, 100, busy)  # takes the first moment
    for _ in range(2):
        with meter.waiting():
            time.sleep(0.04)
        for mark in (Mark.BEGIN, Mark.GRADIENTS, Mark.REDUCED, Mark.DONE):
            busy.mark(mark)
        meter.stepped()
    reading = meter.read(2)  # waited 80 ms, but the device had 10 ms without work
    assert reading["data_wait"] * 64 / reading["images_per_s"] == pytest.approx(0.01, abs=0.001)


def test_another_way_of_execution_is_told_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    before = {"execution": {"compiled": True, "cuda_graph": False}}
    now = {"compiled": False, "cuda_graph": False}
    with caplog.at_level(logging.WARNING):
        compare_execution(before, config_of(), before["execution"])
        compare_execution({}, config_of(), now)  # a checkpoint of an older version
        assert not caplog.text
        compare_execution(before, config_of(), now)
    assert "then: compute.compile=true" in caplog.text
    strict = ["compute.deterministic=true"]
    with pytest.raises(ValueError, match=r"compute\.deterministic promises the same bits.*accept_changes=true"):
        compare_execution(before, config_of(*strict), now)
    compare_execution(before, config_of(*strict, "checkpoint.accept_changes=true"), now)


def test_gradients_are_clipped_as_torch_does(single: Processes) -> None:
    config, free = config_of("optim.clip_norm=0.05", "optim.momentum=0"), config_of("optim.momentum=0")
    parts = parts_of(config, single)
    step, reference = small_step(config, parts, single), small_step(free, parts, single)
    (batch,) = parts.loaders["main"].batches(0, 1)
    scalars = {"lr": 0.1, "ema_weight": 0.1, **parts.method.scalars(0, 4)}
    step({"main": batch}, {}, scalars)
    reference._load_scalars({**scalars, "lr": 0.0})
    reference._take({"main": whole(batch, {})})
    norm = torch.nn.utils.clip_grad_norm_(reference.network.parameters(), 0.05)
    assert norm > 0.05
    torch.testing.assert_close(step.grad_norm, norm)
    for ours, theirs in zip(step.network.parameters(), reference.network.parameters(), strict=True):
        assert theirs.grad is not None
        wanted = theirs - 0.1 * (theirs.grad + config.optim.weight_decay * theirs)
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("decay_on", ["all", "weights"])
def test_what_decays(decay_on: str, single: Processes) -> None:
    settings = [f"optim.weight_decay_on={decay_on}", "optim.weight_decay=0.5", "optim.momentum=0.9"]
    parts = parts_of(config_of(*settings), single)
    step = small_step(config_of(*settings), parts, single)
    decay = {id(weight): group["weight_decay"] for group in step.optimizer.param_groups for weight in group["params"]}
    assert len(decay) == len(list(step.network.parameters()))
    by_name = {name: decay[id(weight)] for name, weight in step.network.named_parameters()}
    plain = 0.5 if decay_on == "all" else 0.0
    assert by_name["conv.weight"] == by_name["heads.plain.weight"] == 0.5
    assert by_name["norm.weight"] == by_name["norm.bias"] == by_name["heads.plain.bias"] == plain
    assert set(step.momenta()) == set(by_name)


def test_auto_precision_knows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0]
    assert has_matrix_units() == (" amx_bf16" in flags)
    for amx, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("hrdc_hpc.engine.precision.has_matrix_units", lambda amx=amx: amx)
        assert pick_precision(Compute(), torch.device("cpu")).name == name
        assert pick_precision(Compute(precision="fp16"), torch.device("cpu")).name == "fp16"


def test_a_trace_of_some_steps(tmp_path: Path, single: Processes) -> None:
    config = config_of()
    parts = parts_of(config, single)
    step = small_step(config, parts, single)
    profiler = Profiler((2, 5), tmp_path / "profile", 3, single.device)
    scalars = {"lr": 0.1, "ema_weight": 0.1, **parts.method.scalars(0, 4)}
    for number, batch in enumerate(parts.loaders["main"].batches(0, 4)):
        profiler.before(number)
        step({"main": batch}, {}, scalars)
        profiler.after(number + 1)
        assert not (tmp_path / "profile").exists()
    profiler.close()  # the attempt ends inside the window: what was traced is kept
    trace = json.loads((tmp_path / "profile" / "attempt-3-steps-2-4.json").read_text())
    convolutions = [event for event in trace["traceEvents"] if event.get("name") == "aten::convolution"]
    assert len(convolutions) == 2
    assert "aten::convolution" in (tmp_path / "profile" / "attempt-3-steps-2-4.txt").read_text()
    hurried = Profiler((2, 5), tmp_path / "none", 3, single.device)
    hurried.before(2)
    hurried.drop()  # told to stop: the disk is for the checkpoint
    hurried.close()
    assert not (tmp_path / "none").exists()


def test_utilisation_is_the_share_of_the_peak(tmp_path: Path, single: Processes) -> None:
    """2 FLOPs a multiply-add, backward twice forward but for the images' own gradient; 24 images a step."""
    config = config_of("compute.peak_tflops=0.001")
    parts = parts_of(config, single)
    folder = RunFolder.create(tmp_path / "run", config_text=to_yaml(config), manifest={})
    with run_of(folder, config, parts, single) as run:
        run._start()
        run.meter.restart()
        for step, batch in enumerate(parts.loaders["main"].batches(0, 3)):
            run._train_step(step, {"main": batch})
        reading = run.meter.read(3)
    wanted = reading["images_per_s"] * flops_per_image(parts.step.network, 8) / 1e9
    assert reading["mfu"] == pytest.approx(wanted)
    # 5 steps an epoch, 4 epochs, 3 steps done
    assert reading["eta_s"] == pytest.approx(17 * 24 / reading["images_per_s"])
    assert {"compute", "communication", "optimizer", "data_wait"} <= set(reading)
    assert 0.2 < sum(reading[name] for name in ("compute", "communication", "optimizer", "data_wait")) <= 1
    assert reading["communication"] < 0.01  # one rank
    with run_of(folder, config_of(), parts, single) as unknown:
        assert "mfu" not in unknown.meter.read(3)
