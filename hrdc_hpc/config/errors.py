"""What is wrong with a config: every problem at once, each with its place, key and mend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches

Path = tuple[str | int, ...]
"""Where a value stands: keys, and the numbers of list items."""


class ConfigError(ValueError):
    """A config that cannot be used. `problems` holds one line for each thing that is wrong."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Place:
    """A line of a file (numbered from 1), or an override."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        """Return 'inat.yaml:12', or the override alone."""
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass
class Problems:
    """Problems as they are found; sorted by file and line, overrides last."""

    found: dict[tuple[Place, str], None] = field(default_factory=dict)

    def add(self, place: Place, path: Path, what: str) -> None:
        """Note `what` is wrong with the value at `path`; the same remark on the same place counts once."""
        key = dotted(path)
        self.found[place, f"{place}: {key}: {what}" if key else f"{place}: {what}"] = None

    def raise_if_any(self) -> None:
        """Raise ConfigError with all that was found."""
        if self.found:
            by_line = sorted(self.found, key=_file_and_line)
            raise ConfigError(text for _, text in by_line)


def _file_and_line(one: tuple[Place, str]) -> tuple[bool, str, int]:
    place = one[0]
    return (True, "", 0) if place.line is None else (False, place.source, place.line)


def dotted(path: Path) -> str:
    """Return 'data.crop_scale[0]' for ('data', 'crop_scale', 0)."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def did_you_mean(wrong: str, valid: Iterable[str]) -> str:
    """Return " Did you mean 'lr'?" for 'learning_rate', or '' where nothing is near."""
    return _question(_nearest(wrong, sorted(valid)))


def did_you_mean_elsewhere(wrong: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'optim.lr'?" for a key that belongs under another section, or ''."""
    keys = sorted(known)
    name = wrong.lower().replace("-", "_")
    same = [key for key in keys if key.rpartition(".")[2] == name]
    return _question(same or [key for key in keys if "_" in name and key.rpartition(".")[2] == _initials(name)])


def _question(names: list[str]) -> str:
    return f" Did you mean {' or '.join(repr(name) for name in names[:3])}?" if names else ""


def _nearest(wrong: str, valid: list[str]) -> list[str]:
    name = wrong.lower().replace("-", "_")
    if close := get_close_matches(name, valid, n=1, cutoff=0.7):
        return close
    if short := [key for key in valid if _initials(name) == key or _initials(key) == name]:
        return short
    return [key for key in valid if set(name.split("_")) & set(key.split("_"))]


def _initials(key: str) -> str:
    words = [word for word in key.split("_") if word]
    return "".join(word[0] for word in words) if len(words) > 1 else ""
