"""What the tests of the data layer share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.images import write_set


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep index caches out of the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with 43 training and 10 val images in 3 classes. Not to be written to."""
    return write_set(tmp_path_factory.mktemp("set") / "root", {"a": 25, "b": 12, "c": 6}, {"a": 4, "b": 3, "c": 3})
