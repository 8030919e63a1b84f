"""Components by name: the folder is the registry. Torch-free as long as the component's own file is."""

from __future__ import annotations

import importlib
import pkgutil
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from hrdc_hpc.config.types import Component


def names(package: str) -> list[str]:
    """All component names of a package, sorted: its public modules that define `Options`."""
    return sorted(name for name in _files(package) if hasattr(importlib.import_module(f"{package}.{name}"), "Options"))


def module(package: str, name: str) -> ModuleType:
    """Return the file of component `name`; ValueError with the valid names if there is none.

    Imports no other file of the package unless there is no such component.
    """
    if name in _files(package):
        file = importlib.import_module(f"{package}.{name}")
        if hasattr(file, "Options"):
            return file
    valid = names(package)
    close = get_close_matches(name, valid, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    kind = package.rpartition(".")[2]
    raise ValueError(f"no '{name}' among {kind}.{hint} Known: {', '.join(valid) or 'none'}")


def _files(package: str) -> list[str]:
    path = importlib.import_module(package).__path__
    return [file.name for file in pkgutil.iter_modules(path) if not file.name.startswith("_")]


def build(package: str, component: Component, *args: Any, **kwargs: Any) -> Any:
    """Call the component's `build(options, *args, **kwargs)`, with default options where none were resolved."""
    file = module(package, component.name)
    options = component.options if component.options is not None else file.Options()
    return file.build(options, *args, **kwargs)
