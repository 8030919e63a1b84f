"""What the tests of packing share."""

from __future__ import annotations

from pathlib import Path

import pytest

from hrdc_hpc.pack.__main__ import main
from tests.data.images import write_set

from packs import config


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep index caches out of the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder: JPEG, grey, CMYK, progressive, 4:4:4 and PNG. Not to be written to."""
    return write_set(tmp_path_factory.mktemp("loose") / "set", {"a": 25, "b": 12, "c": 6}, {"a": 4, "b": 3, "c": 3})


@pytest.fixture(scope="session")
def cfg(loose: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a config with it."""
    return config(tmp_path_factory.mktemp("cfg"), loose)


@pytest.fixture(scope="session")
def packed(cfg: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It, packed into a few shards. Not to be written to."""
    out = tmp_path_factory.mktemp("packed") / "pack"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        assert main(["--cfg", cfg, "--out", str(out), "--shard-gb", "0.00004", "--workers", "1"]) == 0
    return out
