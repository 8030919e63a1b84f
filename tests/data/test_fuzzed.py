"""A thousand damaged JPEGs through the real loaders: each is decoded or named; nothing crashes or hangs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.images import encoded

import fuzzed

pytestmark = [pytest.mark.dali, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
FLOWERS = Path(os.environ.get("HRDC_SHARED_DATA", ROOT.parent / "shared" / "data")) / "flowers"
FILES = 1000
LIMIT_S = 240
"""It takes a minute; a decoder that hangs takes for ever."""
REASONS = {"damaged, or not an image", "its size is not the one that was indexed"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("fuzzed")
    for name, content in map(encoded, range(40)):
        if not name.endswith("png"):
            (folder / name).write_bytes(content)
    if FLOWERS.is_dir():  # photographs, with a camera's segments in their headers
        for path in sorted(FLOWERS.rglob("*.jpg"))[::20]:
            shutil.copy(path, folder / f"photograph-{path.name}")
    done = subprocess.run(
        [sys.executable, fuzzed.__file__, str(folder), "7", str(FILES)],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:].decode(errors="replace")
    return json.loads(done.stdout)


@pytest.mark.parametrize("use", ["evaluation", "training"])
def test_each_damaged_file_is_decoded_or_named(use, outcomes):
    met = outcomes[use]
    assert met["seen"] == FILES
    assert met["decoded"] + len(met["named"]) == FILES
    assert set(met["named"].values()) <= REASONS
    # neither is everything let through nor everything refused, and what is let through is a picture
    assert FILES * 0.3 < met["decoded"] < FILES * 0.7
    assert met["flat"] < 0.05 * met["decoded"]


def test_damage_meets_nobody_else(outcomes):
    """Each image is what it is when it is decoded alone, whatever is wrong with its neighbours."""
    assert outcomes["evaluation"]["named"] == outcomes["alone"]["named"]
    assert outcomes["evaluation"]["pixels"] == outcomes["alone"]["pixels"]


def test_no_truncated_file_passes_whole(outcomes):
    truncated = {name for name in outcomes["evaluation"]["named"] if "truncate" in name}
    assert len(truncated) == FILES // len(fuzzed.MUTATIONS)
    # a crop that lies above the end is whole
    assert set(outcomes["training"]["named"]) <= set(outcomes["evaluation"]["named"])
