"""The vocabulary that option dataclasses are written in. Torch-free.

A component (a loss, a sampler, a backbone ...) is one file in the package of its kind. The file holds a frozen
dataclass `Options` and a function `build`; its name in a YAML is the file's name:

    method: hrdc                                  # all defaults
    method: {name: hrdc, loss: {name: cdt, gamma: 0.2}}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass as _pydantic_dataclass
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

T = TypeVar("T")

_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def options(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass whose fields pydantic checks strictly (no 'true' for 1, no nan)."""
    return _pydantic_dataclass(frozen=True, kw_only=True, config=_STRICT)(cls)  # type: ignore[return-value]


@dataclass(frozen=True)
class Kind:
    """Marks a `Component` field with the package that its name is looked up in, e.g. Kind('hrdc_hpc.losses')."""

    package: str


@dataclass(frozen=True)
class _Operational:
    """Marks a field that says how a run is carried out, not what is learnt; it may change between attempts."""


OPERATIONAL = _Operational()

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Component:
    """A component's name and its options.

    `options` is None only in a default that the config loader has not resolved yet; in a loaded config it is an
    instance of the `Options` dataclass of the component's file.
    """

    name: str
    options: Any = None


@dataclass(frozen=True)
class Rule:
    """A demand on several fields of one dataclass; `says` completes 'field: ...' and names what was got."""

    field: str
    """The field that is blamed; dotted where it lies in a section of the dataclass."""
    holds: bool
    says: str
    also: str | None = None
    """The other field; the error points to its line where the YAML does not give `field`."""


def demand(*rules: Rule) -> None:
    """Raise pydantic's ValidationError (a ValueError) with every rule that does not hold; call it in __post_init__."""
    broken = [
        InitErrorDetails(
            type=PydanticCustomError("rule", "{says}", {"says": rule.says, "also": rule.also}),
            loc=tuple(rule.field.split(".")),
            input=None,
        )
        for rule in rules
        if not rule.holds
    ]
    if broken:
        raise ValidationError.from_exception_data("options", broken)
