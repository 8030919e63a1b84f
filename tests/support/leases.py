"""What tests do to the lease of a run."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from hrdc_hpc.record.folder import RunFolder


def rewrite(run: RunFolder, **changes: Any) -> None:
    """Change what the lease says of its holder."""
    run.lease.write_text(json.dumps({**json.loads(run.lease.read_text()), **changes}))


def elsewhere(run: RunFolder, **changes: Any) -> None:
    """Make the holder one that nothing can be proved of from here."""
    rewrite(run, host="n7", boot_id="another", **changes)


def age(run: RunFolder, seconds: float) -> None:
    """Let the last sign of life be `seconds` ago."""
    then = time.time() - seconds
    os.utime(run.lease, (then, then))


def helpers(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.path.glob(".lease-*"))
