"""A trained run, taken up again to be asked something: its config, one of its checkpoints, its network.

Torch is imported only once the config is found to be right.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hrdc_hpc.config.load import loads
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.data.classes import ClassInfo
from hrdc_hpc.record.folder import RunFolder

if TYPE_CHECKING:
    import torch

    from hrdc_hpc.methods.base import Method
    from hrdc_hpc.models.network import Network

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """A checkpoint in memory."""

    path: Path
    step: int
    about: dict[str, Any]
    """What it says of its run, see state.about."""
    state: dict[str, Any]
    ema: bool
    """Whether the averaged weights were asked for."""


def run_config(run: Path, overrides: Sequence[str] = ()) -> tuple[RunFolder, RunConfig]:
    """Return the folder and the config of a run; ValueError if `run` is none or an override is wrong."""
    folder = RunFolder(run)
    if not folder.config.is_file():
        raise ValueError(f"{run}: not a run folder, it has no config.yaml; give the path that launch printed")
    return folder, loads(folder.config.read_text(), str(folder.config), overrides)


BEST = "best"
Step = int | Literal["best"] | None
"""Of a checkpoint: its number, that of the best evaluation on the holdout, or the newest whole one."""


def step_argument(text: str) -> int | str:
    """Read the value of --step; ArgumentTypeError, which argparse shows as it is, if it is none."""
    if text != BEST and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be '{BEST}' or the number of a step; got {text!r}")
    return BEST if text == BEST else int(text)


def open_checkpoint(folder: RunFolder, step: Step, *, ema: bool) -> Trained:
    """Load the checkpoint of `step`.

    A damaged one is named but left where it is: whoever asks a run changes nothing in it. ValueError if there is no
    whole one, or no averaged weights where they are asked for.
    """
    import hrdc_hpc.engine.checkpoint as checkpoint

    path, about = _choose(folder, step)
    state = checkpoint.load(path)
    if ema and "ema" not in state:
        raise ValueError(f"{path}: holds no averaged weights; train with optim.ema_decay, or leave out --ema")
    return Trained(path, state["step"], about, state, ema)


def _choose(folder: RunFolder, step: Step) -> tuple[Path, dict[str, Any]]:
    import hrdc_hpc.engine.checkpoint as checkpoint
    from hrdc_hpc.engine.checkpoint_files import best_step

    if step == BEST:
        step = best_step(folder.checkpoints)
    there = checkpoint.list_checkpoints(folder.checkpoints)
    wanted = [path for path in there if step is None or checkpoint.step_of(path) == step]
    for path in reversed(wanted):
        why = checkpoint.problem(path)
        if why is None:
            return path, checkpoint.look(path).about
        log.warning("%s is damaged: %s", path, why)
    of_step = "" if step is None else f" of step {step}"
    names = ", ".join(path.name for path in there) or "none"
    raise ValueError(f"{folder.checkpoints}: no whole checkpoint{of_step}; there: {names}")


def classes_of(about: dict[str, Any], config: RunConfig) -> ClassInfo:
    """Return the classes of the run that a checkpoint belongs to; the data set need not be there."""
    if "classes" in about:
        return ClassInfo.from_json(about["classes"])
    from hrdc_hpc.data.index import class_info, open_split

    # saved by a version that did not keep them
    return class_info(open_split(config.data, "train", trust_cache=True), config.data)


def network_of(
    trained: Trained, config: RunConfig, classes: ClassInfo, device: torch.device
) -> tuple[Network, Method]:  # fmt: skip
    """Build the network, with the checkpoint's weights, and the method."""
    from hrdc_hpc.engine.parts import build_model
    from hrdc_hpc.engine.state import load_for_evaluation

    network, method = build_model(_without_initial_weights(config), classes, device)
    load_for_evaluation(network, trained.state, ema=trained.ema)
    return network, method


def _without_initial_weights(config: RunConfig) -> RunConfig:
    """The file that a backbone started from need not be there any more."""
    backbone = config.model.backbone
    if getattr(backbone.options, "weights", None) is None:
        return config
    fresh = replace(backbone, options=replace(backbone.options, weights=None))
    return replace(config, model=replace(config.model, backbone=fresh))
