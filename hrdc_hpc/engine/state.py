"""What a checkpoint holds, taken from and put back into the parts of a training run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from hrdc_hpc.config.compare import differences
from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.engine.buffers import FlatBuffers, for_rank
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.step import TrainStep
from hrdc_hpc.models.network import Network

log = logging.getLogger(__name__)


def capture(
    train_step: TrainStep, step: int, processes: Processes, windows: Sequence[Sequence[int]] = ()
) -> dict[str, Any] | None:  # fmt: skip
    """Gather the state after `step` steps; called by all ranks, returned on rank 0. Tensors are the run's own.

    `windows`: steps that stay skipped, see nonfinite.py.

    `network` and `ema` hold the weights, `buffers` and `ema_buffers` the batch-norm statistics: the mean over the
    ranks, for evaluation, and every rank's own, so that a resume on as many ranks is exact at any step. The loader's
    state is the step alone: step * global_batch samples are consumed.
    """
    buffers = _statistics(train_step.buffers.flat, processes)
    ema_buffers = _statistics(train_step.ema.flat, processes) if train_step.ema else None
    if not processes.first:
        return None
    state = {
        "step": step,
        "network": dict(train_step.network.state_dict()),
        "buffers": buffers,
        "momentum": train_step.momenta(),
        "nonfinite": train_step.nonfinite,
        "nonfinite_in_a_row": train_step.nonfinite_in_a_row,
        "nonfinite_windows": [list(window) for window in windows],
    }
    if train_step.scaler:
        state["scaler"] = train_step.scaler.state_dict()
    if train_step.ema:
        state["ema"] = train_step.ema.state()
        state["ema_buffers"] = ema_buffers
    return state


def state_bytes(train_step: TrainStep) -> int:
    """About how many bytes a checkpoint's tensors take."""
    weights = list(train_step.network.parameters())
    tensors = [*weights, *train_step.momenta().values(), *(weights if train_step.ema else [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _statistics(flat: torch.Tensor, processes: Processes) -> dict[str, torch.Tensor] | None:
    own = flat.detach().cpu()
    mean, by_rank = processes.mean(own), processes.gather_rows(own)
    return None if by_rank is None else {"mean": mean, "by_rank": by_rank}


def restore(state: dict[str, Any], train_step: TrainStep, processes: Processes) -> int:
    """Put a checkpoint's state back and return its step; on another number of ranks statistics start from their mean.

    What the checkpoint lacks (another precision or a moving average was accepted) starts from the restored weights.
    """

    def own(statistics: dict[str, torch.Tensor]) -> torch.Tensor:
        row = for_rank(statistics["by_rank"], statistics["mean"], processes.rank, processes.world_size)
        return row.to(processes.device)

    train_step.network.load_state_dict(state["network"])
    train_step.buffers.flat.copy_(own(state["buffers"]))
    _restore_momenta(train_step, state["momentum"])
    train_step.nonfinite.copy_(state["nonfinite"])
    train_step.nonfinite_in_a_row.copy_(state["nonfinite_in_a_row"])
    if train_step.scaler and "scaler" in state:
        train_step.scaler.load_state_dict(state["scaler"])
    if train_step.ema:
        weights = state.get("ema") or dict(train_step.network.named_parameters())
        train_step.ema.restore(weights, own(state.get("ema_buffers") or state["buffers"]))
    step: int = state["step"]
    return step


@torch.no_grad()
def reset(train_step: TrainStep, initial: Network, scaler: torch.amp.GradScaler | None) -> None:
    """Go back to before the first step, in place; `initial` and `scaler` are as they were made then."""
    train_step.network.load_state_dict(initial.state_dict())
    _restore_momenta(train_step, {})
    train_step.nonfinite.zero_()
    train_step.nonfinite_in_a_row.zero_()
    if train_step.scaler and scaler:
        train_step.scaler.load_state_dict(scaler.state_dict())
    if train_step.ema:
        train_step.ema.restore(dict(train_step.network.named_parameters()), train_step.buffers.flat)


@torch.no_grad()
def _restore_momenta(train_step: TrainStep, saved: dict[str, torch.Tensor]) -> None:
    """Copy in place: the optimizer's tensors may be part of a captured graph."""
    for name, momentum in train_step.momenta().items():
        if name in saved:
            momentum.copy_(saved[name])
        else:  # trained without momentum before, which was accepted
            momentum.zero_()


def load_for_evaluation(network: Network, state: dict[str, Any], *, ema: bool) -> None:
    """Put a checkpoint's weights, live or averaged, and the mean of the ranks' statistics into a network."""
    network.load_state_dict(state["network"])
    if ema:
        network.load_state_dict(state["ema"], strict=False)  # weights only: the rest is in place
    FlatBuffers(network).flat.copy_(state["ema_buffers" if ema else "buffers"]["mean"])


def about(
    config: RunConfig, fingerprint: str, precision: str, world_size: int, classes: ClassInfo,
    execution: dict[str, bool],
) -> dict[str, Any]:  # fmt: skip
    """What a checkpoint says of the run it belongs to; `precision` and `execution` are what unset fields stood for.

    With the classes in it, a network can be built and its answers named where the data set is not.
    """
    return {
        "config": to_yaml(config), "fingerprint": fingerprint, "precision": precision, "world_size": world_size,
        "classes": classes.as_json(), "execution": execution,
    }  # fmt: skip


def refuse_other_run(saved: dict[str, Any], config: RunConfig, fingerprint: str, precision: str | None) -> None:
    """Raise ValueError if a checkpoint was made under other semantic settings or on another data set.

    `precision` is what the config's stands for on this device; None where it may differ, in evaluation.
    """
    if config.checkpoint.accept_changes:
        return
    old = loads(saved["config"], "the checkpoint's config")
    changed = [d for d in differences(old, config) if not d.operational]
    lines = [f"  {d.key}: {d.old} in the checkpoint, {d.new} now" for d in changed]
    if precision is not None and saved["precision"] != precision:
        lines.append(f"  compute.precision: {saved['precision']} in the checkpoint, {precision} on this device")
    if saved["fingerprint"] != fingerprint:
        lines.append(f"  the data set: fingerprint {saved['fingerprint']} in the checkpoint, {fingerprint} now")
    if lines:
        raise ValueError(
            "the checkpoint was made by a run that learns something else:\n" + "\n".join(lines) + "\n"
            "Give the new run another name, set these back, or go on all the same with checkpoint.accept_changes=true."
        )


def compare_execution(saved: dict[str, Any], config: RunConfig, execution: dict[str, bool]) -> None:
    """Warn if steps are compiled or captured now and were not before, or the other way round.

    Left unset, both depend on the node: one may lack a compiler. ValueError with compute.deterministic, which promises
    the same bits.
    """
    old = saved.get("execution") or execution
    changed = [
        f"compute.{_FIELDS[name]}={str(old[name]).lower()}" for name in execution if old[name] != execution[name]
    ]
    if not changed:
        return
    text = f"steps are not carried out as before the checkpoint was made (then: {', '.join(changed)})"
    if config.compute.deterministic and not config.checkpoint.accept_changes:
        raise ValueError(
            f"{text}; compute.deterministic promises the same bits. Start again on a node like the first, or set"
            " checkpoint.accept_changes=true"
        )
    log.warning("%s: losses may differ from those of an undisturbed run in the last bits", text)


_FIELDS = {"compiled": "compile", "cuda_graph": "cuda_graph"}
