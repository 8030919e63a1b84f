"""Filling a cache of decoded images in a process of its own, which can be killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(images: Path, folder: Path) -> subprocess.Popen[str]:
    """Start filling; it says 'begins' when it does, and 'filled N' at its end."""
    return subprocess.Popen(
        [sys.executable, __file__, str(images), str(folder)], text=True, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests/support", "PYTHONSAFEPATH": "1"},
    )  # fmt: skip


def main() -> None:
    from hrdc_hpc.data import filling
    from hrdc_hpc.data.decoded import decoded_index
    from hrdc_hpc.data.index import open_split
    from tests.data.images import folder_data

    filling.BLOCK = 2
    index = decoded_index(open_split(folder_data(Path(sys.argv[1])), "train"), 33, Path(sys.argv[2]))
    filler = filling.Filler(index, cores=1, skip=False, rank=0, ranks=1, told=lambda: False)
    print("begins", flush=True)
    assert filler.fill()
    print(f"filled {filler.filled}")


if __name__ == "__main__":
    main()
