"""What commands tell: lines on standard output for what was done, on standard error for what was not. Torch-free."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line that is seen at once, also through a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to standard error, in the name of `launch`."""
    sys.stderr.write(f"launch: {text}\n")
