"""A config as YAML text that reads back to the same config."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import yaml

from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.config.types import Component


class _Dumper(yaml.SafeDumper):
    """Quotes what our reader would take for a number or for nothing, beside what YAML itself would."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        """Write every value out."""
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    """Escape Unicode's other line breaks: PyYAML writes them as they are and reads them as blanks."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _BREAKS & set(text) else None)


_BREAKS = set("\x85\u2028\u2029")
_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver("number", re.compile(r"[-+.0-9][-+.0-9_eE]*"), list("-+.0123456789"))
_Dumper.add_implicit_resolver("none", re.compile(r"none", re.IGNORECASE), list("nN"))
_Dumper.add_representer(tuple, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def to_yaml(config: RunConfig) -> str:
    """Write every field, defaults too; `loads(to_yaml(config)) == config` for a config that was loaded."""
    return write(plain(config))


def write(value: Any) -> str:
    """Write plain values so that our reader reads the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)


def plain(value: Any) -> Any:
    """Return a config, or a part of one, as what YAML has: mappings, sequences, scalars."""
    if isinstance(value, Component):
        options = {} if value.options is None else plain(value.options)
        return {"name": value.name, **options} if options else value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return tuple(plain(one) for one in value)
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return str(value) if isinstance(value, Path) else value
