"""What the pages for readers point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "records").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_are_there(page: Path) -> None:
    named = re.findall(r"`((?:tests|hrdc_hpc|configs|jobs|slurm|records|benchmarks)/[\w./-]*)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
    for config in re.findall(r"--cfg (\w+\.yaml)", page.read_text()):
        assert config == "flowers.yaml" or (ROOT / "configs" / config).is_file(), config
