"""Writes constraints.txt: `make constraints`. Resolves, installs nothing; takes some minutes.

The pins under CHOSEN stay as they are: torchvision does not name the torch that it was built for, and the resolver
would take a newer one. The rest is resolved by pip on the oldest Python and, keeping that, on each newer one: one list
for all of them.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "constraints.txt"
EXTRAS = "train,demo,report,test"
OLDEST, NEWEST = "3.11", "3.13"
CHOSEN = "# Chosen by hand"
HEADER = f"""\
# Exact versions of all that the extras {EXTRAS} install, for Python {OLDEST} to {NEWEST} on x86-64 Linux.
# Used by `make demo` and `make test`; ranges for users are in pyproject.toml. Written by `make constraints`: to move to
# another torch, change the versions under 'Chosen by hand' (a torch and the torchvision built for it), then run it.
# Plain versions, never +cpu ones: torchvision's and DALI's wheels need the CUDA build, also on machines without a GPU.

"""


def main(interpreters: list[str]) -> int:
    """Resolve on each interpreter in turn, oldest first, and write the file."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        sys.exit(f"constraints: made on x86-64 Linux only, this is {platform.system()} {platform.machine()}")
    found = [path for name in interpreters if (path := shutil.which(name))]
    if len(found) != len(interpreters):
        sys.exit(f"constraints: needs {' and '.join(interpreters)} on the PATH, found {', '.join(found) or 'none'}")
    chosen = _chosen(TARGET.read_text())
    pins = dict(chosen)
    for interpreter in found:
        sys.stderr.write(f"constraints: resolving with {interpreter}\n")
        pins |= _resolve(interpreter, pins)
    local = [f"{name}=={version}" for name, version in pins.items() if "+" in version]
    if local:
        sys.exit(f"constraints: {', '.join(local)} is a local build; hide it from pip (find-links?) and try again")
    rest = sorted(set(pins) - set(chosen), key=str.lower)
    TARGET.write_text(
        HEADER
        + f"{CHOSEN}\n"
        + "".join(f"{name}=={version}\n" for name, version in chosen.items())
        + "\n# Resolved\n"
        + "".join(f"{name}=={pins[name]}\n" for name in rest)
    )
    sys.stderr.write(f"constraints: wrote {len(pins)} versions to {TARGET.name}\n")
    return 0


def _chosen(text: str) -> dict[str, str]:
    """The pins of the block that starts with the CHOSEN line and ends with an empty line."""
    block = text.split(f"{CHOSEN}\n", 1)[1].split("\n\n", 1)[0]
    return dict(line.split("==") for line in block.splitlines())


def _resolve(interpreter: str, pins: dict[str, str]) -> dict[str, str]:
    """All that the extras need on this interpreter, given `pins`: name and version."""
    with tempfile.TemporaryDirectory() as folder:
        given, report = Path(folder) / "given.txt", Path(folder) / "report.json"
        given.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--quiet", "--dry-run"]
        options = ["--ignore-installed", "--report", str(report), "--constraint", str(given)]
        subprocess.run([*pip, *options, f"{ROOT}[{EXTRAS}]"], check=True)
        packages = [
            item for item in json.loads(report.read_text())["install"] if "dir_info" not in item["download_info"]
        ]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in packages}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or [f"python{OLDEST}", f"python{NEWEST}"]))
