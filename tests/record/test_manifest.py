from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hrdc_hpc.record import manifest


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a package in it, and an environment with another package, not tracked."""
    package, installed = tmp_path / "package", tmp_path / "env" / "package"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("a = 1\n")
    (tmp_path / ".gitignore").write_text("env/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_source_of_a_clean_and_of_a_dirty_checkout(checkout: Path) -> None:
    clean = manifest.source(checkout / "package")
    assert len(clean["sha"]) == 40
    assert (clean["diff"], clean["untracked"]) == ("", [])
    (checkout / "package" / "__init__.py").write_text("a = 2\n")
    (checkout / "new.py").touch()
    dirty = manifest.source(checkout / "package")
    assert dirty["sha"] == clean["sha"]
    assert "-a = 1\n+a = 2\n" in dirty["diff"]
    assert dirty["untracked"] == ["new.py"]


def test_a_long_diff_is_cut_and_says_so(checkout: Path) -> None:
    (checkout / "package" / "__init__.py").write_text("b = 1\n" * 300_000)
    diff = manifest.source(checkout / "package")["diff"]
    assert 1_000_000 < len(diff) < 1_000_100
    assert "cut here" in diff


def test_an_installed_package_inside_a_checkout_is_not_its_source(checkout: Path) -> None:
    assert manifest.source(checkout / "env" / "package")["sha"] is None


def test_no_checkout_and_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__init__.py").touch()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert manifest.source(tmp_path)["why"].startswith("not a git checkout: ")
    monkeypatch.setenv("PATH", "")
    assert manifest.source(tmp_path) == {"sha": None, "why": "git is not installed"}


def fake_nvidia_smi(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_gpus_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fake_nvidia_smi(tmp_path, "echo 'NVIDIA A100, 81920 MiB, 550.1'; echo 'NVIDIA A100, 81920 MiB, 550.1'")
    one = {"name": "NVIDIA A100", "memory.total": "81920 MiB", "driver_version": "550.1"}
    assert manifest.gpus() == [one, one]
    fake_nvidia_smi(tmp_path, "exit 9")
    assert "nvidia-smi failed" in manifest.gpus()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert manifest.gpus() == "no nvidia-smi on the PATH"


def test_collect_is_plain_and_imports_nothing_heavy() -> None:
    program = (
        "import json, sys\n"
        "import hrdc_hpc.record.attempts, hrdc_hpc.record.lease\n"
        "from hrdc_hpc.record.manifest import collect\n"
        "told = collect(['python', '-m', 'x'])\n"
        "told['heavy'] = sorted({'torch', 'nvidia', 'numpy', 'pydantic', 'yaml', 'xxhash'} & set(sys.modules))\n"
        "print(json.dumps(told, allow_nan=False))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["heavy"] == []
    assert told["command"] == ["python", "-m", "x"]
    assert told["packages"]["pytest"] == pytest.__version__
    assert told["python"]["version"] == ".".join(map(str, sys.version_info[:3]))
    assert {"time", "cwd", "user", "host", "source", "platform", "cpu", "gpus"} <= told.keys()


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(manifest.getpass, "getuser", nameless)
    assert manifest.collect([])["user"] == f"uid {os.getuid()}"
