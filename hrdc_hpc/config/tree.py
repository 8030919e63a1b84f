"""YAML text as a tree in which every value knows its line, and every word is still as it was written.

What a word means depends on the field that it is for (see scalars.py): PyYAML by itself would turn `no` into False,
1:30 into 90, 010 into 8 and leave 1e-3 a string.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from hrdc_hpc.config.errors import Path, Place, Problems

MOST_VALUES = 100_000
"""More than any config has; anchors within anchors can multiply without end."""

_PLAIN_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"}


@dataclass(frozen=True)
class Scalar:
    """A word, number or quoted text."""

    place: Place
    text: str
    plain: bool
    """Whether it was written without quotes."""

    @property
    def is_null(self) -> bool:
        """Whether it is nothing, `~` or `null`."""
        return self.plain and self.text in ("", "~", "null", "Null", "NULL")


@dataclass(frozen=True)
class Items:
    """A list."""

    place: Place
    items: list[Node]


@dataclass(frozen=True)
class Table:
    """A mapping; its values carry the places of their keys."""

    place: Place
    entries: dict[str, Node]


Node = Scalar | Items | Table


def parse(text: str, place: Place, problems: Problems) -> Node | None:
    """Return the tree of a YAML text that begins at `place`; None, with the problem noted, if it is not YAML.

    Where `place` has no line (an override), all values stand at `place`.
    """
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        problems.add(_at(place, error.problem_mark), (), f"YAML syntax: {_plain_words(error)}")
        return None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) if place.line is not None else 0
        where = place if place.line is None else Place(place.source, place.line + line)
        problems.add(where, (), f"YAML syntax: the character {chr(error.character)!a} is not allowed; remove it")
        return None
    except RecursionError:
        problems.add(place, (), "YAML syntax: nested too deeply")
        return None
    if root is None:
        return Scalar(place, "", plain=True)
    return _Converter(place, problems).node(root, (), _at(place, root.start_mark))


def _at(place: Place, mark: yaml.Mark | None) -> Place:
    if place.line is None or mark is None:
        return place
    return Place(place.source, place.line + mark.line)


def _plain_words(error: yaml.MarkedYAMLError) -> str:
    text = f"{error.problem}" + (f", {error.context}" if error.context else "")
    if "'\\t'" in text:
        text += " (indent with spaces, not with tabs)"
    elif "mapping values are not allowed" in text:
        text += " (quote a text that has ': ' in it, and check the indentation)"
    return text


class _Converter:
    """From PyYAML's nodes to ours. Aliases become copies, so that an override changes one place only."""

    def __init__(self, place: Place, problems: Problems) -> None:
        self.place = place
        self.problems = problems
        self.open: list[int] = []
        self.values = 0

    def node(self, node: yaml.Node, path: Path, place: Place) -> Node:
        """Convert a node; what cannot be converted becomes an empty table, with the problem noted."""
        self.values += 1
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.add(place, path, f"the YAML tag {tag} is not allowed; write the value alone")
        if id(node) in self.open or self.values > MOST_VALUES:
            what = "contains itself" if id(node) in self.open else f"stands for more than {MOST_VALUES} values"
            self.problems.add(place, path, f"the YAML alias {what}; write the values out")
            return Table(place, {})
        if isinstance(node, yaml.ScalarNode):
            return Scalar(place, node.value, plain=node.style is None)
        self.open.append(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                pairs = enumerate(node.value)
                return Items(
                    place, [self.node(item, (*path, i), _at(self.place, item.start_mark)) for i, item in pairs]
                )
            assert isinstance(node, yaml.MappingNode)
            return self.table(node, path, place)
        finally:
            self.open.pop()

    def table(self, node: yaml.MappingNode, path: Path, place: Place) -> Table:
        """Convert a mapping; `<<` adds the keys of other mappings that it does not have itself."""
        entries: dict[str, Node] = {}
        merged: list[Node] = []
        for key, value in node.value:
            where = _at(self.place, key.start_mark)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.add(where, path, "a key must be a word, not a list or a mapping")
            elif key.value == "<<" and key.style is None:
                merged.append(self.node(value, path, where))
            elif key.value in entries:
                first = entries[key.value].place
                line = f", first on line {first.line}" if first.line is not None else ""
                self.problems.add(where, (*path, key.value), f"duplicate key{line}; keep one")
            else:
                entries[key.value] = self.node(value, (*path, key.value), where)
        for one in merged:
            for table in one.items if isinstance(one, Items) else [one]:
                if isinstance(table, Table):
                    entries = {**table.entries, **entries}
                else:
                    self.problems.add(one.place, path, "<< takes a mapping, such as *name of an anchor")
        return Table(place, entries)
