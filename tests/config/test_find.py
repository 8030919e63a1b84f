"""`--cfg inat.yaml` from anywhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hrdc_hpc
from hrdc_hpc.config import find
from hrdc_hpc.config.load import ConfigError, load

ROOT = Path(hrdc_hpc.__file__).parents[1]


def test_shipped_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find.find("inat.yaml") == find.find("inat") == ROOT / "configs" / "inat.yaml"
    monkeypatch.chdir(ROOT)
    assert find.find("inat.yaml") == Path("configs/inat.yaml")


def test_the_working_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inat.yaml").write_text("")
    (tmp_path / "inat").mkdir()
    (tmp_path / "mine.yml").write_text("")
    assert find.find("inat.yaml") == find.find("inat") == Path("inat.yaml")
    assert find.find("mine.yml") == Path("mine.yml")
    assert find.find(str(tmp_path / "inat.yaml")) == Path("inat.yaml")
    monkeypatch.chdir(ROOT)
    assert find.find(str(tmp_path / "inat.yaml")) == tmp_path / "inat.yaml"


def test_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = ", ".join(find.shipped())
    with pytest.raises(ConfigError) as caught:
        load("inta.yaml")
    assert str(caught.value) == (
        f"inta.yaml: no such config in {tmp_path} or {ROOT / 'configs'}. Did you mean 'inat.yaml'? Shipped: {shipped}"
    )
    with pytest.raises(ConfigError) as caught:
        load("/nowhere/x.yaml")
    assert str(caught.value) == f"/nowhere/x.yaml: no such config in /nowhere/x.yaml. Shipped: {shipped}"


def test_a_file_that_is_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_bytes(b"name: a\nseed: \xff\n")
    with pytest.raises(ConfigError) as caught:
        load("run.yaml")
    assert caught.value.problems == ["run.yaml:2: not UTF-8 text; save the file as UTF-8"]


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("name: a\n")
    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ConfigError, match=r"^run.yaml: cannot be read: Permission denied$"):
        load("run.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("naem: a\n", encoding="utf-8-sig")
    with pytest.raises(ConfigError) as caught:
        load("run.yaml")
    assert "run.yaml:1: naem: unknown key. Did you mean 'name'?" in caught.value.problems


@pytest.mark.slow
def test_an_installed_wheel_ships_the_configs(tmp_path: Path) -> None:
    """Built from a copy: a build leaves files behind in its source folder."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("hrdc_hpc", "configs", "pyproject.toml", "setup.py"):
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    (source / "README.md").write_text("")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(pip, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert {f"hrdc_hpc/configs/clusters/{name}" for name in ("apptainer.yaml", "README.md")} <= set(names)
    assert not [name for name in names if name.startswith("configs/")]
    assert {f"hrdc_hpc/data/published/{name}.txt" for name in ("inat2018", "imagenet_lt")} <= set(names)
    code = "from hrdc_hpc.config.find import find, shipped; print(find('inat.yaml'), *shipped())"
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "installed", check=True, capture_output=True, text=True
    ).stdout.split()
    assert told == ["hrdc_hpc/configs/inat.yaml", *find.shipped()]
