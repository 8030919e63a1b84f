"""`--sweep method=hrdc,ce seed=0,1,2` as a grid, and the grid's elements with their names.

The values are YAML texts, as in overrides; a comma within brackets or quotes belongs to its value:

    seed=0,1,2    optim.lr=[0.1,0.2]    data.crop_scale=[0.5,1],[0.7,1]    method={name: hrdc, fusion: tail},ce

A word without '=' names a YAML file of such keys, each with the list of its values: `--sweep grid.yaml`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

Grid = Mapping[str, Sequence[str]]
"""Dotted key: its values, as YAML texts."""

_SHARED = ("name", "out_dir", "cluster")
_OPEN, _CLOSE, _QUOTES = "[{", "]}", "\"'"
_LONGEST_VALUE, _LONGEST_NAME = 24, 120


@dataclass(frozen=True)
class Element:
    """One combination of a grid's values."""

    name: str
    """Of its run folder, such as 'method-hrdc_seed-0'; depends on its own values and the grid's keys only."""
    values: Mapping[str, str]

    def overrides(self, given: Sequence[str]) -> list[str]:
        """Return this element's values among the overrides that all elements share.

        A shared one of a whole section comes before a value within it, any other one behind the values: an option of a
        component applies to all components that are swept over.
        """
        swept = [f"{key}={self.values[key]}" for key in sorted(self.values, key=lambda key: key.count("."))]
        whole = [word for word in given if any(key.startswith(f"{_key(word)}.") for key in self.values)]
        return [*whole, *swept, *(word for word in given if word not in whole)]


def read_grid(words: Sequence[str], given: Sequence[str]) -> dict[str, list[str]]:
    """Read the words behind --sweep. `given`: the overrides beside them. Raises ValueError with all problems."""
    grid: dict[str, list[str]] = {}
    problems: list[str] = []
    for word in words:
        try:
            for key, values in _read_file(Path(word)) if _names_a_file(word) else [_read(word)]:
                _refuse_key(key, [*grid, *map(_key, given)])
                grid[key] = values
        except ValueError as error:
            problems.append(f"--sweep {word}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return grid


def elements(grid: Grid) -> list[Element]:
    """Return all combinations, the last key's values changing fastest. Raises ValueError for two of one name."""
    labels = _labels(list(grid))
    found = []
    for values in itertools.product(*grid.values()):
        parts = (f"{labels[key]}-{_value_label(value)}" for key, value in zip(grid, values, strict=True))
        found.append(Element(_shortened("_".join(parts), _LONGEST_NAME), dict(zip(grid, values, strict=True))))
    twice = [name for name, number in Counter(element.name for element in found).items() if number > 1]
    if twice:
        raise ValueError(
            f"--sweep: {len(twice)} elements would have another's name, such as {twice[0]}: a value is there twice, or"
            " two differ in nothing that a folder's name can show"
        )
    return found


def split(text: str) -> list[str]:
    """Return the parts between the commas that are in no brackets and no quotes. Raises ValueError for open ones."""
    parts, depth, quote, before = [""], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES and before in ("", ",", ":", *_OPEN):
            quote = character
        else:
            depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            break
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
        before = before if character == " " else character
    if depth or quote:
        raise ValueError("a bracket or quote is not closed")
    return [part.strip() for part in parts]


def _read(word: str) -> tuple[str, list[str]]:
    key, equals, text = word.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not all(key.split(".")):
        raise ValueError("must read key=value,value, such as seed=0,1,2")
    listed = _is_one_list(text)
    values = split(text[1:-1] if listed else text)
    if not all(values):
        raise ValueError("a value is missing: a comma has nothing in front or behind; write '' for an empty text")
    if len(values) == 1 and not listed:
        raise ValueError(
            "has one value. An override that is not swept over goes in front of --sweep; a sweep over one value is"
            f" written {key}=[{text}]"
        )
    return key, values


def _names_a_file(word: str) -> bool:
    return "=" not in word and word.endswith((".yaml", ".yml"))


def _read_file(path: Path) -> list[tuple[str, list[str]]]:
    """Read keys and values as they are written: what a word means depends on its key."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot be read: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError("must hold keys, each with a list of values, such as 'seed: [0, 1, 2]'")
    found = []
    for key, node in root.value:
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise ValueError(
                f"line {key.start_mark.line + 1}: {key.value}: must be a list of values, such as [0, 1, 2]"
            )
        values = [text[item.start_mark.index : item.end_mark.index].strip() for item in node.value]
        if long := [value for value in values if not value or "\n" in value]:
            raise ValueError(
                f"line {key.start_mark.line + 1}: {key.value}: write each value in one line; got {long[0]!r}"
            )
        found.append((str(key.value), values))
    return found


def _is_one_list(text: str) -> bool:
    """Whether the brackets at both ends belong together."""
    if not (text.startswith("[") and text.endswith("]")):
        return False
    try:
        split(text[1:-1])
    except ValueError:
        return False
    depths = itertools.accumulate((character in _OPEN) - (character in _CLOSE) for character in text[1:-1])
    return min(depths, default=0) >= 0


def _refuse_key(key: str, others: Sequence[str]) -> None:
    if key.partition(".")[0] in _SHARED:
        raise ValueError("the elements of an array share it; start one sweep for each value, with a --name of its own")
    if key in others:
        raise ValueError(f"{key} is given twice; leave one out")


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """The last word of a key where that is enough to tell it from the others, else the whole key."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return {key: key if last[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys}


def _value_label(text: str) -> str:
    plain = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES else text
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)
    if label == plain and len(label) <= _LONGEST_VALUE:
        return label
    return f"{label.strip('-')[: _LONGEST_VALUE - 7]}-{_hash(text)}"


def _shortened(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 7]}-{_hash(name)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
