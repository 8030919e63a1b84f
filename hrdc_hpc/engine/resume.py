"""Where a run starts from, and where it goes back to: the newest checkpoint that is whole, else the initial weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.engine import checkpoint
from hrdc_hpc.engine.checkpoint import Best
from hrdc_hpc.engine.evaluation import Accuracy
from hrdc_hpc.engine.parts import Parts, build_model
from hrdc_hpc.engine.processes import Processes
from hrdc_hpc.engine.state import compare_execution, refuse_other_run, reset, restore
from hrdc_hpc.record.attempts import read_attempts
from hrdc_hpc.record.folder import RunFolder
from hrdc_hpc.record.metrics import read_metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Beginning:
    """What a run goes on from; the same on every rank. The state itself is in the parts."""

    step: int = 0
    best: Best | None = None
    """The best evaluation up to there; only with data.holdout."""
    evaluated: Accuracy | None = None
    """Of the live weights, if the metrics hold the evaluation of that step."""
    windows: list[list[int]] = field(default_factory=list)
    """Steps that stay skipped, see nonfinite.py."""


def resume(folder: RunFolder, config: RunConfig, parts: Parts, processes: Processes) -> Beginning | None:
    """Restore the newest whole checkpoint on all ranks; None if there is none.

    ValueError if it is another run's, see state.refuse_other_run and state.compare_execution.
    """
    found = processes.from_first(_newest(folder) if processes.first else None)
    if found is None:
        return None
    path, told = found
    fingerprint = parts.images.fingerprint
    refuse_other_run(told, config, fingerprint, parts.precision.name)
    compare_execution(told, config, parts.step.execution)
    state = checkpoint.load(path)
    step = restore(state, parts.step, processes)
    best = Best.of(told) if told["fingerprint"] == fingerprint else None
    there = None
    if processes.first:
        there = evaluation_there(folder, config, step, world_size=told["world_size"], ema=parts.step.ema is not None)
    if processes.first:
        log.info("resumed from %s (step %d)", path, step)
    return Beginning(step, best, processes.from_first(there), state.get("nonfinite_windows", []))


def go_back(folder: RunFolder, config: RunConfig, parts: Parts, processes: Processes) -> Beginning:
    """Restore the newest whole checkpoint, or what the run began with, on all ranks."""
    beginning = resume(folder, config, parts, processes)
    if beginning:
        return beginning
    initial, _ = build_model(config, parts.images.classes, processes.device)
    reset(parts.step, initial, parts.precision.scaler())
    return Beginning()


def _newest(folder: RunFolder) -> tuple[Path, dict[str, Any]] | None:
    def damaged(path: Path, why: str) -> None:
        log.warning("%s is damaged and was set aside: %s", path, why)

    found = checkpoint.latest(folder.checkpoints, on_damaged=damaged)
    return (found.path, found.about) if found else None


def evaluation_there(
    folder: RunFolder, config: RunConfig, step: int, *, world_size: int, ema: bool
) -> Accuracy | None:  # fmt: skip
    """Find the evaluation of the checkpoint after `step` steps, made on `world_size` ranks; None if there is none.

    With batch norm per rank an attempt on another number of ranks came to this step with other weights.
    """
    sizes = {a["attempt"]: a.get("info", {}).get("world_size") for a in read_attempts(folder)}
    wanted = {"eval", "eval_ema"} if ema else {"eval"}
    there = {r["kind"]: r for r in read_metrics(folder) if r["step"] == step and r["kind"] in wanted}
    if wanted - there.keys():
        return None
    alike = all(sizes.get(record["attempt"]) == world_size for record in there.values())
    if config.model.batch_norm == "per_rank" and not alike:
        return None
    accuracy: Accuracy = there["eval"]["accuracy"]
    return accuracy
