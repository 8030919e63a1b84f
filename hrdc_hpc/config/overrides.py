"""`optim.lr=0.2` on a command line: the same YAML as in the file, set at a dotted key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hrdc_hpc.config.errors import Path, Place, Problems
from hrdc_hpc.config.tree import Items, Node, Scalar, Table, parse


def apply(root: Table, overrides: Sequence[str], problems: Problems) -> Table:
    """Return `root` with the overrides set, the last one winning.

    `method=ce` replaces the whole component; `method.loss.gamma=0.2` sets within it, also where the file has only its
    name. Malformed overrides are noted in `problems`.
    """
    for override in overrides:
        place = Place(f"override '{override}'")
        key, equals, text = override.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path):
            problems.add(place, (), "must read key=value, such as optim.lr=0.2")
            continue
        value = parse(text, place, problems)
        if value is not None:
            root = _set(root, path, value, (), problems)
    return root


def _set(table: Table, path: tuple[str, ...], value: Node, above: Path, problems: Problems) -> Table:
    """Return `table` with `value` at `path` below it."""
    key, rest = path[0], path[1:]
    if rest:
        here = (*above, key)
        inner = table.entries.get(key)
        if isinstance(inner, Items):
            problems.add(value.place, (*here, *rest), f"set the list whole, such as {'.'.join(map(str, here))}=[...]")
            return table
        if isinstance(inner, Scalar) and not inner.is_null:
            # a component's short form `method: hrdc`; whatever else it is, the reader says that it has no keys
            inner = Table(value.place, {"name": inner})
        elif not isinstance(inner, Table):
            inner = Table(value.place, {})
        value = _set(inner, rest, value, here, problems)
    return replace(table, entries={**table.entries, key: value})
