"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real images (flowers, CIFAR-10) and the true class counts; skips where it is missing."""
    path = Path(os.environ.get("HRDC_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set HRDC_SHARED_DATA")
    return path
