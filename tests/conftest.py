"""What every test may use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# other work on the machine may make any example slow; the suite has a time limit for each test
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

ROOT = Path(__file__).resolve().parents[1]

pytest_plugins = ["session_rules"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real images (flowers, CIFAR-10) and the true class counts; skips where it is missing."""
    path = Path(os.environ.get("HRDC_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set HRDC_SHARED_DATA")
    return path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, written once for the whole session."""
    pytest.importorskip("sklearn", reason="the embedded data set needs scikit-learn")
    from hrdc_hpc.data.datasets import digits_lt

    root = tmp_path_factory.mktemp("data") / "digits_lt"
    digits_lt.prepare(digits_lt.Options(root=root))
    return root


@pytest.fixture(scope="session")
def cifar10(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the standard python files of CIFAR-10, unpacked once for the whole session."""
    root = tmp_path_factory.mktemp("cifar10")
    unpack = shared_data / "cifar10" / "unpack.py"
    if not unpack.is_file():
        pytest.skip(f"CIFAR-10 not found at {unpack}")
    subprocess.run([sys.executable, str(unpack), str(root)], check=True, stdout=subprocess.DEVNULL)
    return root
