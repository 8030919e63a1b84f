"""What differs between two configs, and whether a run may go on under the new one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hrdc_hpc.config import hints
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.config.types import Component


@dataclass(frozen=True)
class Difference:
    """One key whose value differs."""

    key: str
    """Dotted, as an override names it: 'method.loss.gamma'."""
    old: Any
    new: Any
    operational: bool
    """Whether it is free to change between the attempts of a run (paths, nodes, logging, retention)."""

    def __str__(self) -> str:
        """Return 'optim.lr: 0.1 -> 0.2'."""
        return f"{self.key}: {_short(self.old)} -> {_short(self.new)}"


def differences(old: RunConfig, new: RunConfig) -> list[Difference]:
    """Return every key whose value differs, in the order of the schema.

    A field is operational if it, or a section or component above it, is marked so. Another component is one
    difference; the same component with other options is one for each option.
    """
    return _differences(old, new, "", operational=False)


def _differences(old: Any, new: Any, above: str, *, operational: bool) -> list[Difference]:
    found: list[Difference] = []
    for name, (_, hint) in hints.fields(old.__class__).items():
        found += _of_value(
            getattr(old, name), getattr(new, name), above + name, operational or hints.is_operational(hint)
        )
    return found


def _of_value(old: Any, new: Any, key: str, operational: bool) -> list[Difference]:
    if isinstance(old, Component) and isinstance(new, Component) and old.name == new.name:
        old, new = old.options, new.options
    if dataclasses.is_dataclass(old) and type(old) is type(new) and not isinstance(old, Component):
        return _differences(old, new, f"{key}.", operational=operational)
    return [] if old == new else [Difference(key, old, new, operational)]


def _short(value: Any) -> str:
    if value is None:
        return "null"
    return value.name if isinstance(value, Component) else str(value)
