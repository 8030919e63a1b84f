"""A thousand damaged JPEGs through the real loaders: each is decoded or named; nothing crashes or hangs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.images import encoded

import fuzzed

pytestmark = [pytest.mark.dali, pytest.mark.slow]

FILES = 1000
LIMIT_S = 240
"""It takes 10 s; a decoder that hangs takes for ever."""
REASONS = {"damaged, or not an image", "its size is not the one that was indexed"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("fuzzed")
    for name, content in map(encoded, range(40)):
        if not name.endswith("png"):
            (folder / name).write_bytes(content)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, fuzzed.__file__, str(folder), "7", str(FILES)],
        cwd=root, env={"PYTHONPATH": str(root), "PATH": ""}, capture_output=True, timeout=LIMIT_S, check=False,
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


def test_no_truncated_file_passes_whole(outcomes):
    truncated = {name for name in outcomes["evaluation"]["named"] if "truncate" in name}
    assert len(truncated) == FILES // len(fuzzed.MUTATIONS)
    # a crop that lies above the end is whole
    assert set(outcomes["training"]["named"]) <= set(outcomes["evaluation"]["named"])
