"""How many nodes a job takes: a number, or a range of which SLURM gives what it has. Torch-free."""

from __future__ import annotations

import re

RANGE = r"^[1-9][0-9]*-[1-9][0-9]*$"
ALLOWED_RANGE = "a range MIN-MAX such as 2-4"


def parse_nodes(text: str) -> int | str:
    """Return the number or range that is written on a command line; ValueError with what is allowed."""
    text = text.strip()
    if re.fullmatch(r"[0-9]+", text):
        return int(text)
    if re.fullmatch(RANGE, text):
        return text
    raise ValueError(f"must be a whole number above 0 or {ALLOWED_RANGE}; got {text!r}")


def node_range(nodes: int | str) -> tuple[int, int]:
    """Return fewest and most nodes: (2, 4) for '2-4', (3, 3) for 3."""
    if isinstance(nodes, int):
        return nodes, nodes
    fewest, _, most = nodes.partition("-")
    return int(fewest), int(most)
