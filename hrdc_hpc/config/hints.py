"""What a type hint says: its parts, its marks, and in plain words what it allows."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic.fields import FieldInfo

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import OPERATIONAL, Component, Kind

SCALARS = {bool, int, float, str, pathlib.Path, type(None)}


@functools.cache
def fields(cls: type) -> dict[str, tuple[dataclasses.Field[Any], Any]]:
    """Return name -> (field, resolved type hint with its marks) of a dataclass."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: (field, hints[field.name]) for field in dataclasses.fields(cls)}


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default. `Field(default_factory=...)` and the like arrive as a FieldInfo."""
    if isinstance(field.default, FieldInfo):
        return field.default.is_required()
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def is_section(hint: Any) -> bool:
    """Whether a bare hint is an options dataclass."""
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint is not Component


def unwrap(hint: Any) -> tuple[Any, list[Any]]:
    """Split Annotated into the bare hint and its marks, those inside pydantic's Field among them."""
    if get_origin(hint) is not Annotated:
        return hint, []
    bare, *marks = get_args(hint)
    inside = [one for mark in marks if isinstance(mark, FieldInfo) for one in mark.metadata]
    return bare, marks + inside


def members(hint: Any) -> list[Any]:
    """Return the members of a union, those in a nested Annotated too; a list of one for anything else."""
    bare, marks = unwrap(hint)
    if get_origin(bare) in (Union, types.UnionType):
        return [one for member in get_args(bare) for one in members(member)]
    return [hint] if marks else [bare]


def kind_of(hint: Any) -> Kind | None:
    """Return the mark of a component field, or None."""
    bare, marks = unwrap(hint)
    kind = next((mark for mark in marks if isinstance(mark, Kind)), None)
    assert kind is not None or bare is not Component, "a Component field is Annotated[Component, Kind('package')]"
    return kind


def is_operational(hint: Any) -> bool:
    """Whether a hint is marked OPERATIONAL, itself or as a member of a union (`Annotated[int, OPERATIONAL] | None`)."""
    return OPERATIONAL in unwrap(hint)[1] or any(OPERATIONAL in unwrap(member)[1] for member in members(hint))


def scalar_types(hint: Any) -> set[type]:
    """Return the scalar types that a hint without structure takes, NoneType among them where null is allowed."""
    found: set[type] = set()
    for member in members(hint):
        bare, _ = unwrap(member)
        found |= {type(value) for value in get_args(bare)} if get_origin(bare) is Literal else {bare}
    assert found <= SCALARS, f"the config has no reading for the type {hint}"
    return found


def allowed(hint: Any) -> str:
    """Say what a hint allows: 'a whole number above 0, or null', 'one of auto, cpu, gpu' ..."""
    return " or ".join(_member(member) for member in members(hint) if member is not type(None)) + (
        ", or null" if type(None) in members(hint) else ""
    )


def one_of(kind: Kind) -> str:
    """Say which names a component field takes: 'one of the methods ce, hrdc'."""
    return f"one of the {kind.package.rpartition('.')[2]} {', '.join(registry.names(kind.package))}"


def _member(hint: Any) -> str:
    bare, marks = unwrap(hint)
    if described := next(
        (mark.description for mark in marks if isinstance(mark, FieldInfo) and mark.description), None
    ):
        return described
    if kind := kind_of(hint):
        return one_of(kind)
    if is_section(bare):
        return f"a mapping with keys among {', '.join(sorted(fields(bare)))}"
    if get_origin(bare) is Literal:
        return f"one of {', '.join(str(value) for value in get_args(bare))}"
    if get_origin(bare) is tuple:
        return _tuple(get_args(bare))
    if get_origin(bare) is dict:
        return f"a mapping of names to {allowed(get_args(bare)[1])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", pathlib.Path: "a path"}
    return words[bare] + _limits(marks)


def _tuple(items: tuple[Any, ...]) -> str:
    if items[1:] == (Ellipsis,):
        return f"a list, each {allowed(items[0])}"
    each = [allowed(item) for item in items]
    return f"a list of {len(items)}, each {each[0]}" if len(set(each)) == 1 else f"a list of {', '.join(each)}"


def _limits(marks: list[Any]) -> str:
    words: list[str] = []
    for mark in marks:
        match mark:
            case annotated_types.Gt(gt=limit):
                words.append(f"above {limit}")
            case annotated_types.Ge(ge=limit):
                words.append(f"of at least {limit}")
            case annotated_types.Lt(lt=limit):
                words.append(f"below {limit}")
            case annotated_types.Le(le=limit):
                words.append(f"at most {limit}")
            case annotated_types.MultipleOf(multiple_of=factor):
                words.append(f"divisible by {factor}")
            case annotated_types.MinLen(min_length=length):
                words.append(f"of length {length} or more")
            case annotated_types.MaxLen(max_length=length):
                words.append(f"of length {length} or less")
            case _ if pattern := getattr(mark, "pattern", None):
                words.append(f"that matches {pattern}")
    return " " + " and ".join(words) if words else ""
