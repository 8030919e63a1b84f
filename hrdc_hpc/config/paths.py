"""Paths of a config made absolute, so that a run finds its data from whatever folder it is resumed. Torch-free."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def absolute(value: T) -> T:
    """Return `value`, a config or part of one, with every relative Path in it taken from the working directory."""
    return _absolute(value)  # type: ignore[no-any-return]  # of the type that came in


def _absolute(value: Any) -> Any:
    if isinstance(value, Path):
        return value.absolute()
    if isinstance(value, tuple):
        return tuple(_absolute(part) for part in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return dataclasses.replace(value, **{name: _absolute(getattr(value, name)) for name in names})
    return value
