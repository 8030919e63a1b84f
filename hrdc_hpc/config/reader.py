"""From a YAML tree to the dataclasses: this file follows the structure, pydantic checks the values.

Reading goes on after a problem, so that all problems are found at once; `FAILED` stands where a value would be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from hrdc_hpc.config import hints, registry, scalars
from hrdc_hpc.config.errors import Path, Place, Problems, did_you_mean, did_you_mean_elsewhere, dotted
from hrdc_hpc.config.tree import Items, Node, Scalar, Table
from hrdc_hpc.config.types import Component, Kind

FAILED: Final = object()
_MESSAGE_OF_ITS_OWN = {"rule", "value_error", "assertion_error"}


class Reader:
    """One reading of one config."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.seen: dict[Path, tuple[Node, Any]] = {}
        """Node and type hint of every value that was written."""
        self.known: set[str] = set()
        """Dotted names of all keys of the sections and components that were read."""
        self.unknown: list[tuple[Place, Path, list[str]]] = []

    def root(self, cls: type, node: Table) -> Any:
        """Read a whole config as `cls`; FAILED if anything is wrong, with the problems noted."""
        result = self.section(cls, node, ())
        for place, path, valid in self.unknown:
            wrong = str(path[-1])
            hint = did_you_mean(wrong, valid) or did_you_mean_elsewhere(wrong, self.known)
            self.problems.add(place, path, "unknown key." + (hint or f" Known: {', '.join(valid) or 'none'}"))
        return FAILED if self.problems.found else result

    def section(self, cls: type, table: Table, path: Path, base: Any = None) -> Any:
        """Read a table as the options dataclass `cls`; what is not written comes from `base`, else is the default."""
        fields = hints.fields(cls)
        self.known |= {dotted((*path, name)) for name in fields}
        for name, node in table.entries.items():
            if name not in fields:
                self.unknown.append((node.place, (*path, name), sorted(fields)))
        values: dict[str, Any] = {}
        for name, (field, hint) in fields.items():
            default = _default(field) if base is None else getattr(base, name)
            if name in table.entries:
                values[name] = self.value(hint, table.entries[name], (*path, name), default)
            elif base is None and hints.is_required(field):
                self.problems.add(table.place, (*path, name), f"missing; {_needs(hint)}")
                values[name] = FAILED
            else:
                values[name] = self.default(hint, default, table.place, (*path, name))
        try:
            return cls(**values)
        except ValidationError as error:
            self.refusals(error, values, table, path)
        return FAILED

    def default(self, hint: Any, default: Any, place: Place, path: Path) -> Any:
        """Resolve what was not written: components in a default get their options."""
        kind = next((kind for member in hints.members(hint) if (kind := hints.kind_of(member))), None)
        if isinstance(default, Component) and kind is not None:
            return self.component(kind, Table(place, {}), path, default)
        if hints.is_section(type(default)):
            return self.section(type(default), Table(place, {}), path, default)
        return default

    def value(self, hint: Any, node: Node, path: Path, default: Any = None, whole: Any = None) -> Any:
        """Read a node as what `hint` says. `whole` is the hint that it is a member of, for the error."""
        whole = hint if whole is None else whole
        self.seen[path] = (node, whole)
        members = [member for member in hints.members(hint) if member is not type(None)]
        optional = type(None) in hints.members(hint)
        if optional and isinstance(node, Scalar) and node.is_null:
            return None
        kind = hints.kind_of(members[0])
        bare, _ = hints.unwrap(members[0])
        if kind is not None:
            return self.component(kind, node, path, default)
        if hints.is_section(bare):
            if isinstance(node, Scalar) and node.is_null:  # a section whose lines are all comments
                node = Table(node.place, {})
            if isinstance(node, Table):
                return self.section(bare, node, path, default if isinstance(default, bare) else None)
            return self.wrong(node, path, whole)
        if get_origin(bare) is tuple:
            return self.items(get_args(bare), node, path, whole)
        if get_origin(bare) is dict:
            return self.mapping(get_args(bare)[1], node, path, whole)
        return self.scalar(whole, node, path)

    def scalar(self, hint: Any, node: Node, path: Path) -> Any:
        """Read a word as one of the scalar types of `hint`."""
        if not isinstance(node, Scalar):
            return self.wrong(node, path, hint)
        try:
            return scalars.read(node, hints.scalar_types(hint))
        except scalars.Unreadable as hint_of_mend:
            return self.wrong(node, path, hint, str(hint_of_mend))

    def items(self, items: tuple[Any, ...], node: Node, path: Path, whole: Any) -> Any:
        """Read a list as a tuple."""
        any_number = items[1:] == (Ellipsis,)
        if not isinstance(node, Items) or not (any_number or len(items) == len(node.items)):
            return self.wrong(node, path, whole)
        each = [items[0]] * len(node.items) if any_number else items
        values = [self.value(hint, one, (*path, i)) for i, (hint, one) in enumerate(zip(each, node.items, strict=True))]
        return FAILED if FAILED in values else tuple(values)

    def mapping(self, hint: Any, node: Node, path: Path, whole: Any) -> Any:
        """Read a table with free keys as a dict."""
        if isinstance(node, Scalar) and node.is_null:
            return {}
        if not isinstance(node, Table):
            return self.wrong(node, path, whole)
        values = {name: self.value(hint, one, (*path, name)) for name, one in node.entries.items()}
        return FAILED if FAILED in values.values() else values

    def component(self, kind: Kind, node: Node, path: Path, default: Any) -> Any:
        """Read `hrdc` or `{name: hrdc, ...options}`; without a name, the options are those of the default component."""
        options = dict(node.entries) if isinstance(node, Table) else {}
        name_node = options.pop("name", None) if isinstance(node, Table) else node
        if name_node is None and isinstance(default, Component):
            place, name = node.place, default.name
        elif isinstance(name_node, Scalar) and not name_node.is_null:
            place, name = name_node.place, name_node.text
        else:
            fault = f"got {scalars.got(name_node)}" if name_node else "the key 'name' is missing"
            self.problems.add((name_node or node).place, path, f"must be {hints.one_of(kind)}; {fault}")
            return FAILED
        try:
            file = registry.module(kind.package, name)
        except ValueError as error:
            self.problems.add(place, path, str(error))
            return FAILED
        same = isinstance(default, Component) and default.name == name
        assert "name" not in hints.fields(file.Options), f"{file.__name__}: 'name' is the component's own key"
        checked = self.section(file.Options, Table(node.place, options), path, default.options if same else None)
        return FAILED if checked is FAILED else Component(name, checked)

    def wrong(self, node: Node, path: Path, hint: Any, mend: str = "") -> Any:
        """Note that a node is not what `hint` allows."""
        text = f"must be {hints.allowed(hint)}; got {scalars.got(node)}"
        self.problems.add(node.place, path, f"{text}; {mend}" if mend else text)
        return FAILED

    def refusals(self, error: ValidationError, values: dict[str, Any], table: Table, path: Path) -> None:
        """Note what pydantic refused, at the line of the value that it is about."""
        for one in error.errors(include_url=False):
            where = one["loc"]
            if where and values.get(str(where[0])) is FAILED:
                continue  # noted already
            if one["type"] in _MESSAGE_OF_ITS_OWN:
                also = one.get("ctx", {}).get("also") or ""
                nodes = (_below(table, where), _below(table, also.split(".")))
                place = next((node.place for node in nodes if node is not None), table.place)
                self.problems.add(place, (*path, *where), one["msg"].removeprefix("Value error, "))
                continue
            full = (*path, *where)
            while full not in self.seen and len(full) > len(path) + 1:  # pydantic names the member of a union too
                full = full[:-1]
            assert full in self.seen, f"the default of {dotted(full)} is not what its own type allows: {one['msg']}"
            node, hint = self.seen[full]
            mend = "" if one["type"] != "finite_number" else "it must be finite"
            self.wrong(node, full, hint, mend)


def _below(table: Table, keys: Sequence[str | int]) -> Node | None:
    """Return what stands in a table under nested keys, or the list or word on the way there; None if nothing does."""
    node: Node | None = table if keys else None
    for key in keys:
        if not isinstance(node, Table):
            break
        node = node.entries.get(str(key))
    return node


def _default(field: dataclasses.Field[Any]) -> Any:
    """Return a field's default, or None where it has none."""
    if isinstance(field.default, FieldInfo):
        return None if field.default.is_required() else field.default.get_default(call_default_factory=True)
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _needs(hint: Any) -> str:
    """Say what belongs where a required key is missing."""
    bare, _ = hints.unwrap(hint)
    if hints.is_section(bare):
        required = [name for name, (field, _) in hints.fields(bare).items() if hints.is_required(field)]
        return f"a section with at least {', '.join(required)}"
    return f"must be {hints.allowed(hint)}"
