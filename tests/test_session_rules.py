"""HRDC_REQUIRE: a required test that is skipped fails the session."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.slow
def test_last(): pass

@pytest.mark.dali
def test_skips(): pytest.skip("for a whim")

@pytest.mark.dali
@pytest.mark.gpu
def test_lacks_gpu(): pass

@pytest.mark.dali
@pytest.mark.xfail(strict=True)
def test_known(): assert False
"""
RUN = """
import sys, pytest, session_rules
session_rules.NEEDS = {"slurm": lambda: None, "dali": lambda: None, "gpu": lambda: "no GPU"}
sys.exit(pytest.main(["-q", "-ra", "-p", "no:cacheprovider", "-c", "empty.ini", "."], plugins=[session_rules]))
"""


def session(folder: Path, require: str) -> tuple[int, str]:
    """Exit code and output of a session over the tests in `folder`."""
    (folder / "empty.ini").write_text("[pytest]\nmarkers =\n  slow\n  dali\n  gpu\n  slurm\n")
    environ = os.environ | {"HRDC_REQUIRE": require, "PYTHONPATH": str(Path(__file__).parent / "support")}
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # starts faster
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_skip_is_a_failure_only_for_what_is_required(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    code, said = session(tmp_path, "")
    assert code == pytest.ExitCode.OK, said
    assert "1 passed, 2 skipped, 1 xfailed" in said
    code, said = session(tmp_path, "slurm,dali")
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed" in said
    assert "HRDC_REQUIRE has dali, but this test was skipped. Skipped: for a whim" in said
    code, said = session(tmp_path, "gpu")
    assert "HRDC_REQUIRE has gpu, but this test was skipped. Skipped: no GPU" in said
    assert "1 passed, 1 skipped, 1 xfailed, 1 error" in said


def test_a_whole_file_that_is_skipped_and_an_unknown_marker_fail(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("import pytest\n\npytest.importorskip('not_there')\n")
    code, said = session(tmp_path, "dali")
    assert code == pytest.ExitCode.INTERRUPTED, said
    assert "this whole file was skipped" in said
    code, said = session(tmp_path, "dalí")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "HRDC_REQUIRE: dalí unknown; allowed: slurm, dali, gpu" in said


def test_files_with_costly_tests_come_last(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("import pytest\n\n@pytest.mark.slow\ndef test_1(): pass\ndef test_2(): pass\n")
    (tmp_path / "test_b.py").write_text("import pytest\n\n@pytest.mark.dali\ndef test_3(): pass\n")
    (tmp_path / "test_c.py").write_text("def test_4(): assert False\n")
    code, said = session(tmp_path, "dali")
    assert code == pytest.ExitCode.TESTS_FAILED
    assert said.splitlines()[0].startswith("F...")
