"""Staging in a process of its own, which can be killed: python stager.py PACK TO [MB_PER_S]."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def start(pack: Path, to: Path, mb_per_s: float | None = None) -> subprocess.Popen[str]:
    """Start copying both splits; it ends with the state on its standard output."""
    rate = [] if mb_per_s is None else [str(mb_per_s)]
    return subprocess.Popen(
        [sys.executable, __file__, str(pack), str(to), *rate], text=True, stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip


def main() -> None:
    from hrdc_hpc.config.node_local import Staging as Options
    from hrdc_hpc.data.packed import open_packed
    from hrdc_hpc.data.staging import Staging

    pack, to, *rate = sys.argv[1:]
    files = [open_packed(Path(pack), split, check=False).files for split in ("train", "val")]
    options = Options(to=to, keep_free_gb=0, mb_per_s=float(rate[0]) if rate else None)
    print("begins", flush=True)
    staging = Staging(files, options)
    assert staging.join(60)
    staging.close()
    print(staging.state)


if __name__ == "__main__":
    main()
