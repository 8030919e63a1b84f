"""Initial weights of a backbone from a local file. Torch is imported where it is used."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_NAMED = 5
"""Tensors that an error lists before it only counts the rest."""


def load_weights(backbone: nn.Module, path: Path, *, drop: str = "fc.") -> None:
    """Load a state dict of tensors into a backbone; those whose names start with `drop`, its classifier, are left out.

    Loading executes nothing. Every other tensor must be there with the right shape, except `num_batches_tracked`, which
    old files lack. Raises ValueError if the file is missing, unreadable or does not fit, with what differs.
    """
    state = {name: value for name, value in _read(path).items() if not name.startswith(drop)}
    problems = _differences(backbone.state_dict(), state)
    if problems:
        raise ValueError(
            f"model.backbone.weights: {path} does not fit this backbone:\n"
            + "\n".join(f"  {line}" for line in problems)
            + "\n"
            "Give a state dict of the same architecture under torchvision's names, or leave weights out."
        )
    backbone.load_state_dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    import torch

    if not path.is_file():
        raise ValueError(
            f"model.backbone.weights: no file {path}; give the path of a state dict that the compute nodes see"
        )
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"model.backbone.weights: {path} cannot be read as tensors only: {_first_line(error)}. It may be truncated,"
            " or hold objects that would run code; save one with torch.save(model.state_dict(), path)"
        ) from error
    if not isinstance(state, Mapping):
        raise ValueError(
            f"model.backbone.weights: {path} holds a {type(state).__name__}, not a dict of tensors by name"
        )
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"model.backbone.weights: {path} is not a state dict: {_some(others)} are no tensors. If the state dict"
            " lies inside, save it alone: torch.save(checkpoint['state_dict'], path)"
        )
    return dict(state)


def _differences(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Lines on missing and unexpected names and on wrong shapes; none if the tensors fit."""
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} is {list(given[name].shape)}, should be {list(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    return [f"{what} ({len(items)}): {_some(items)}" for what, items in found.items() if items]


def _some(items: list[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
