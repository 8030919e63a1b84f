"""Packing in tests, by the program as a user starts it, and what is compared afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
name: packing
data: {{dataset: {{name: image_folder, root: "{root}"}}, image_size: 32, eval_resize: 36}}
model: {{backbone: {{name: tiny, width: 8}}}}
method: ce
optim: {{epochs: 1, global_batch: 10}}
"""


def config(folder: Path, root: Path) -> str:
    """Path of a config whose data set is an image folder."""
    path = folder / "packing.yaml"
    path.write_text(CONFIG.format(root=root))
    return str(path)


def start(*arguments: str | Path, by_job: bool = False) -> subprocess.Popen[str]:
    """Start the packer as a process group of its own, as a shell does; `by_job`: through jobs/pack.py."""
    program = [str(ROOT / "jobs" / "pack.py")] if by_job else ["-m", "hrdc_hpc.pack"]
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip


def contents(pack: Path) -> dict[str, bytes]:
    """Every file of a pack by its path."""
    return {str(path.relative_to(pack)): path.read_bytes() for path in sorted(pack.rglob("*")) if path.is_file()}


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))
