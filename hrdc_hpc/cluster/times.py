"""Time limits as SLURM writes them. Torch-free."""

from __future__ import annotations

import re

_FORMS = (
    (r"(?P<m>\d+)", "minutes"),
    (r"(?P<m>\d+):(?P<s>\d+)", "minutes:seconds"),
    (r"(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)", "hours:minutes:seconds"),
    (r"(?P<d>\d+)-(?P<h>\d+)", "days-hours"),
    (r"(?P<d>\d+)-(?P<h>\d+):(?P<m>\d+)", "days-hours:minutes"),
    (r"(?P<d>\d+)-(?P<h>\d+):(?P<m>\d+):(?P<s>\d+)", "days-hours:minutes:seconds"),
)


def minutes(text: str) -> int:
    """Whole minutes of a time limit in any of SLURM's forms, rounded up as SLURM does; ValueError for others and for 0.

    As in SLURM, '2:30' is two and a half minutes; two and a half hours are '2:30:00'.
    """
    for pattern, _ in _FORMS:
        if match := re.fullmatch(pattern, text.strip()):
            part = {key: int(value) for key, value in match.groupdict().items()}
            seconds = ((part.get("d", 0) * 24 + part.get("h", 0)) * 60 + part.get("m", 0)) * 60 + part.get("s", 0)
            if seconds:
                return -(-seconds // 60)
    raise ValueError(f"got {text!r}; known: {', '.join(form for _, form in _FORMS)}, more than 0")
