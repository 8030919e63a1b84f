"""A make-believe SLURM for tests of what is shown: squeue, sacct and scancel that answer from files."""

from __future__ import annotations

from pathlib import Path

import pytest

_SQUEUE = """#!/bin/bash
echo "$@" >> "$FAKE/squeue-calls"
[ -e "$FAKE/down" ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
cat "$FAKE/queue" 2>/dev/null || { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
"""
_SACCT = """#!/bin/bash
echo "$@" >> "$FAKE/sacct-calls"
cat "$FAKE/accounted" 2>/dev/null || { echo "Slurm accounting storage is disabled" >&2; exit 1; }
"""
_SCANCEL = '#!/bin/bash\necho "$@" >> "$FAKE/cancelled"\n'


class FakeSlurm:
    """What SLURM is to say; its programs are on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name, text in (("squeue", _SQUEUE), ("sacct", _SACCT), ("scancel", _SCANCEL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        monkeypatch.setenv("FAKE", str(folder))

    def queue(self, *rows: str) -> None:
        """Have squeue answer with rows: id|state|start|submitted|nodes|reason."""
        (self.folder / "queue").write_text("".join(f"{row}\n" for row in rows))

    def down(self) -> None:
        """The controller does not answer."""
        (self.folder / "down").touch()

    def accounted(self, *rows: str) -> None:
        """Have sacct answer with rows: id|state."""
        (self.folder / "accounted").write_text("".join(f"{row}\n" for row in rows))

    def calls(self, program: str) -> list[str]:
        """Arguments of each call of a program."""
        path = self.folder / program
        return path.read_text().splitlines() if path.exists() else []
