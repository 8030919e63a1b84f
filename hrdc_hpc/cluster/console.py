"""What commands tell: lines on standard output for what was done, on standard error for what was not. Torch-free."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a line that is seen at once, also through a pipe; what the terminal's encoding lacks is shown as \\xff."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding, sys.stdout.errors or "strict")
    except UnicodeEncodeError:  # a file may be called by bytes that are no text
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to standard error, in the name of `launch`."""
    sys.stderr.write(f"launch: {text}\n")
