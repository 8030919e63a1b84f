"""What a checkpoint holds, taken from and put back into the parts of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hrdc_hpc.config.compare import differences
from hrdc_hpc.config.load import loads, to_yaml
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.engine.buffers import average, for_rank
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.step import TrainStep


@dataclass
class Progress:
    """How far a run is. The loader's state is the step alone: step * global_batch samples are consumed."""

    step: int = 0
    """Optimizer steps done."""
    evaluated: int = -1
    """Step after which the last whole evaluation was made."""


def capture(train_step: TrainStep, progress: Progress, processes: Processes) -> dict[str, Any]:
    """Gather the state of a run; called by all ranks, the result is used by rank 0.

    `network` holds the statistics averaged over the ranks, for evaluation; `buffers_by_rank` every rank's own, so that
    a resume on as many ranks is exact at any step.
    """
    by_rank = train_step.buffers.by_rank(processes)
    with train_step.buffers.holding(average(by_rank).to(processes.device)):
        network = {name: value.detach().clone() for name, value in train_step.network.state_dict().items()}
    state = {
        "step": progress.step,
        "evaluated": progress.evaluated,
        "network": network,
        "buffers_by_rank": by_rank,
        "optimizer": train_step.optimizer.state_dict()["state"],
        "nonfinite": train_step.nonfinite,
    }
    if train_step.scaler:
        state["scaler"] = train_step.scaler.state_dict()
    if train_step.ema:
        state["ema"] = train_step.ema.state()
        state["ema_buffers_by_rank"] = processes.gather_rows(train_step.ema.flat.cpu())
    return state


def restore(state: dict[str, Any], train_step: TrainStep, processes: Processes) -> Progress:
    """Put a checkpoint's state back; on another number of ranks the statistics start from their average."""

    def own(by_rank: torch.Tensor) -> torch.Tensor:
        return for_rank(by_rank, processes.rank, processes.world_size).to(processes.device)

    train_step.network.load_state_dict(state["network"])
    train_step.buffers.flat.copy_(own(state["buffers_by_rank"]))
    groups = train_step.optimizer.state_dict()["param_groups"]
    train_step.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
    train_step.rebind_rate()
    train_step.nonfinite.copy_(state["nonfinite"])
    if train_step.scaler:
        train_step.scaler.load_state_dict(state["scaler"])
    if train_step.ema:
        train_step.ema.restore(state["ema"], own(state["ema_buffers_by_rank"]))
    return Progress(state["step"], state["evaluated"])


def about(config: RunConfig, fingerprint: str, world_size: int) -> dict[str, Any]:
    """What a checkpoint says of the run it belongs to."""
    return {"config": to_yaml(config), "fingerprint": fingerprint, "world_size": world_size}


def refuse_other_run(saved: dict[str, Any], config: RunConfig, fingerprint: str) -> None:
    """Raise ValueError if a checkpoint was made under other semantic settings or on another data set."""
    if config.checkpoint.accept_changes:
        return
    old = loads(saved["config"], "the checkpoint's config")
    changed = [d for d in differences(old, config) if not d.operational]
    lines = [f"  {d.key}: {d.old} in the checkpoint, {d.new} now" for d in changed]
    if saved["fingerprint"] != fingerprint:
        lines.append(f"  the data set: fingerprint {saved['fingerprint']} in the checkpoint, {fingerprint} now")
    if lines:
        raise ValueError(
            "the checkpoint was made by a run that learns something else:\n" + "\n".join(lines) + "\n"
            "Give the new run another name, set these back, or resume all the same with checkpoint.accept_changes=true."
        )
