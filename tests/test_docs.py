"""What the pages for readers point to is there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hrdc_hpc.config.load import load

ROOT = Path(__file__).resolve().parents[1]
FEATURES = ROOT / "docs" / "features.md"
PAGES = [
    ROOT / "README.md", ROOT / "slurm" / "README.md", *sorted((ROOT / "records").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]  # fmt: skip


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


def rows_of_features() -> list[list[str]]:
    """Cells of each row: number, feature, six peers, ours."""
    lines = [line for line in FEATURES.read_text().splitlines() if re.match(r"\| \d+ \|", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names_of_tests(text: str) -> list[str]:
    return re.findall(r"`(tests/[^`\s]*::[^`\s]*)`", text)


def test_the_table_of_features_is_whole() -> None:
    rows = rows_of_features()
    assert [int(row[0]) for row in rows] == list(range(1, 57))
    for number, feature, *peers, ours in rows:
        assert len(peers) == 6, number
        assert set(peers) <= {"Y", "P", "N"}, f"{number} {feature}"
        assert re.match(r"Y[:;,] |[PN]: \w", ours), f"{number} {feature}: {ours}"
        assert ours[0] != "Y" or names_of_tests(ours), f"{number} {feature}: a Y without a test"
    counted = {letter: sum(row[-1][0] == letter for row in rows) for letter in "YPN"}
    assert "{Y} Y, {P} P and {N} N".format(**counted) in FEATURES.read_text()


def test_every_test_that_features_name_is_there() -> None:
    named = names_of_tests(FEATURES.read_text())
    assert len(named) == FEATURES.read_text().count("::"), "one is written so that it is not found"
    there: dict[str, set[str]] = {}
    for file in {name.partition("::")[0] for name in named}:
        source = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        there[file] = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    missing = [name for name in named if name.partition("::")[2] not in there[name.partition("::")[0]]]
    assert missing == []
    assert [name for name in named if not name.partition("::")[2].startswith("test_")] == []


def test_the_commands_of_the_data_page_have_configs_that_load() -> None:
    commands = re.findall(
        r"^python -m hrdc_hpc\.\w+ .*--cfg .*$", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE
    )
    assert len(commands) > 4
    for command in commands:
        words = shlex.split(command)
        load(words[words.index("--cfg") + 1], [word for word in words[3:] if re.match(r"[a-z_.]+=", word)])


def test_the_check_of_the_data_page_says_what_it_promises(tmp_path: Path, shared_data: Path) -> None:
    (program,) = re.findall(r"python - <<'EOF'\n(.*?)EOF", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    program = program.replace("inat.yaml", "flowers_lt.yaml").replace("$SCRATCH/inat2018", "$SHARED/flowers")
    environment = os.environ | {"SHARED": str(shared_data), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    assert told.stdout == "291 training and 100 evaluation images; 1 2 2\n"
