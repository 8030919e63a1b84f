"""What a word of YAML means to the field that it is written for.

A text field takes what is written (`no`, 010, 12:30 stay text), a boolean field true/false and yes/no/on/off, a number
field decimal numbers (1e-3 too) and nothing that some YAML readers take for another number (010, 1:30, 0x1f).
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Set
from typing import Any

from hrdc_hpc.config.tree import Items, Node, Scalar

_DIGITS = r"(0|[1-9][0-9]*(_[0-9]+)*)"
WHOLE = re.compile(rf"[-+]?{_DIGITS}")
DECIMAL = re.compile(rf"[-+]?({_DIGITS}(\.([0-9]+(_[0-9]+)*)?)?|\.[0-9]+(_[0-9]+)*)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.?(inf|nan)", re.IGNORECASE)
_BOOLEAN = {"true": True, "false": False}
_BOOLEAN_WORDS = {"yes": True, "on": True, "no": False, "off": False}


class Unreadable(ValueError):
    """A word that the field's types cannot take; its text is a hint, or empty."""


def read(node: Scalar, types: Set[type]) -> Any:
    """Return the value of `node` as one of `types` (bool, int, float, str, Path); Unreadable if it is none of them."""
    if node.plain and types & {bool, int, float}:
        value = _as_word(node.text, types)
        if value is not None:
            return value
    if not node.is_null and not (node.plain and type(None) in types and node.text.lower() == "none"):
        if str in types:
            return node.text
        if pathlib.Path in types:
            return _as_path(node.text)
    raise Unreadable(_hint(node, types))


def _as_word(text: str, types: Set[type]) -> bool | int | float | None:
    boolean = _BOOLEAN.get(text.lower())
    if boolean is None and str not in types:
        boolean = _BOOLEAN_WORDS.get(text.lower())
    if bool in types and boolean is not None:
        return boolean
    if int in types and WHOLE.fullmatch(text):
        return int(text)
    if float in types and (DECIMAL.fullmatch(text) or (str not in types and _NOT_FINITE.fullmatch(text))):
        return float(re.sub(r"\.(?=[in])", "", text, flags=re.IGNORECASE))  # YAML's .inf is Python's inf
    return None


def _as_path(text: str) -> pathlib.Path:
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise Unreadable("there is no such user; write ./~ for a folder whose name begins with ~") from error


def _hint(node: Scalar, types: Set[type]) -> str:
    text = node.text
    if type(None) in types and text.lower() == "none":
        return "write null for none, or quote it if it is a name"
    if not node.plain:
        return "remove the quotes" if _as_word(text, types) is not None else ""
    if not types & {int, float}:
        return ""
    if re.fullmatch(r"[-+]?0[0-9_]+(\.[0-9]*)?", text):
        return "write it without the leading 0, which makes it octal to some readers of YAML"
    if re.fullmatch(r"[-+]?[0-9]+(:[0-9]+)+(\.[0-9]*)?", text):
        return "write one plain number in the field's unit"
    if float not in types and DECIMAL.fullmatch(text) and float(text).is_integer():
        return f"write {int(float(text))}"
    return ""


def got(node: Node) -> str:
    """Say what was written, for an error: 'fast', 1.5, no (a YAML word for false), a list of 3 ..."""
    if isinstance(node, Items):
        return f"a list of {len(node.items)}"
    if not isinstance(node, Scalar):
        return "a mapping"
    word = node.text.lower()
    if not node.plain:
        return f"the text {node.text!r}"
    if node.is_null:
        return node.text or "nothing"
    if word in _BOOLEAN_WORDS:
        return f"{node.text} (a YAML word for {str(_BOOLEAN_WORDS[word]).lower()})"
    number = _NOT_FINITE.fullmatch(node.text) or re.fullmatch(r"[-+.]*[0-9][-+.:_0-9eExX]*", node.text)
    return node.text if word in _BOOLEAN or number else repr(node.text)
