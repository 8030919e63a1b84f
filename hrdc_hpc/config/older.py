"""A config for code that is older than this: a run goes on with the code of its first launch. Torch-free.

That code refuses keys that it does not know, and a frozen config has every key that it does.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from hrdc_hpc.config.dump import plain, to_yaml, write
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.config.types import Component


def to_yaml_like(frozen: str, config: RunConfig) -> tuple[str, list[str]]:
    """Write a config with the keys that `frozen` has, and no others; a section that is another now has all of its own.

    Returns:
        The YAML text, and the keys, dotted, that were left out of it.
    """
    left_out: list[str] = []
    kept = _kept(config, yaml.safe_load(frozen), "", left_out)
    return (write(kept) if left_out else to_yaml(config)), left_out


def concerned(key: str, left_out: list[str]) -> bool:
    """Whether a changed key is one of those that were left out, or below one."""
    return any(f"{key}.".startswith(f"{one}.") for one in left_out)


def _kept(value: Any, there: Any, key: str, left_out: list[str]) -> Any:
    if isinstance(value, Component):
        name, known = (there["name"], there) if isinstance(there, dict) else (there, {})
        if name != value.name or value.options is None:
            return plain(value)
        options = _kept(value.options, known, key, left_out)
        return {"name": name, **options} if options else name
    if not dataclasses.is_dataclass(value) or not isinstance(there, dict):
        return plain(value)
    kept = {}
    for field in dataclasses.fields(value):
        own = f"{key}.{field.name}" if key else field.name
        if field.name in there:
            kept[field.name] = _kept(getattr(value, field.name), there[field.name], own, left_out)
        else:
            left_out.append(own)
    return kept
