"""pack.json: what a packed data set is. Needs neither torch nor numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

MANIFEST = "pack.json"
FORMAT = 1
"""Raised when folders of another form would be written."""
SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar."""

    file: str
    images: int
    bytes: int
    """Length of the file."""
    checksum: str
    """xxh3_64 of the file, hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class SplitFacts:
    """What is known of a split without a look at its index."""

    images: int
    bytes: int
    """Of all encoded images."""
    unreadable: int
    """Images of the source that are not in it."""
    fingerprint: str
    """ImageIndex.fingerprint of the packed images; the source's own where all were packed as they are."""
    source: str
    """ImageIndex.fingerprint of the source."""
    index_bytes: int
    index_checksum: str
    """xxh3_64 of the index file, hexadecimal."""
    shards: tuple[Shard, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A packed data set."""

    name: str
    """Of the data set that it was made from, e.g. inat2018."""
    classes: tuple[str, ...]
    """Names, by label."""
    options: Mapping[str, Any]
    """How it was packed: shard size, re-encoding, what was checked."""
    versions: Mapping[str, str]
    """Of the programs that decoded and encoded."""
    splits: Mapping[str, SplitFacts]
    format: int = FORMAT

    @classmethod
    def read(cls, root: Path) -> Self:
        """Read the manifest in folder `root`. ValueError where there is none that can be used."""
        path = root / MANIFEST
        try:
            told = json.loads(path.read_text("utf-8"))
        except FileNotFoundError as error:
            raise ValueError(
                f"{root}: no packed data set ({MANIFEST} is missing, which is written last). Make or finish it with:"
                f" python -m hrdc_hpc.pack --cfg CONFIG --out {root}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: damaged: {error}. Remove it and pack the data set anew.") from error
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            form = told.get("format") if isinstance(told, dict) else None
            raise ValueError(f"{path}: format {form}, this version reads {FORMAT}. Pack the data set anew.")
        try:
            splits = {name: _split(facts) for name, facts in told["splits"].items()}
            return cls(**{**told, "classes": tuple(told["classes"]), "splits": splits})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not as this version writes it: {error}. Pack the data set anew.") from error

    def as_json(self) -> dict[str, Any]:
        """Return plain values, from which `read` makes the same again."""
        return asdict(self)

    def split(self, root: Path, name: str) -> SplitFacts:
        """Return what is known of a split. ValueError if there is no such split."""
        if name not in self.splits:
            raise ValueError(f"{root}: no split '{name}' in {MANIFEST}; there are {', '.join(self.splits)}")
        return self.splits[name]


def _split(facts: Mapping[str, Any]) -> SplitFacts:
    return SplitFacts(**{**facts, "shards": tuple(Shard(**shard) for shard in facts["shards"])})
