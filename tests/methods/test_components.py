"""The folder is the registry: a component is found by its file's name, says what it is, and is read without torch."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hrdc_hpc.config import registry
from hrdc_hpc.config.types import Component

from long_tail import make_classes

SHIPPED = {
    "hrdc_hpc.losses": {"cross_entropy", "cdt", "hierarchical", "label_smoothing"},
    "hrdc_hpc.methods": {"ce", "hrdc"},
    "hrdc_hpc.models.backbones": {"tiny", "resnet32", "resnet50", "resnext50_32x4d", "torchvision"},
    "hrdc_hpc.engine.schedules": {"cosine", "step"},
}
FILES = [(package, name) for package in SHIPPED for name in registry.names(package)]


@pytest.mark.parametrize("package", SHIPPED)
def test_found_by_name(package: str) -> None:
    assert set(registry.names(package)) >= SHIPPED[package]
    for name in SHIPPED[package]:
        assert registry.module(package, name).__name__ == f"{package}.{name}"
        assert callable(registry.module(package, name).build)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no 'hdrc' among methods\. Did you mean 'hrdc'\? Known: .*ce.*hrdc"):
        registry.module("hrdc_hpc.methods", "hdrc")


def tree_of(package: str, name: str) -> ast.Module:
    source = registry.module(package, name).__file__
    assert source
    return ast.parse(Path(source).read_text())


@pytest.mark.parametrize(("package", "name"), FILES)
def test_says_what_it_is(package: str, name: str) -> None:
    tree = tree_of(package, name)
    assert ast.get_docstring(tree)
    (options,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Options"]
    assert ast.get_docstring(options)
    for field, after in zip(options.body, [*options.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            doc = after.value if isinstance(after, ast.Expr) else None
            assert isinstance(doc, ast.Constant), f"{package}.{name}: {ast.unparse(field)} has no doc line"
            assert isinstance(doc.value, str)


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("name", registry.names("hrdc_hpc.methods"))
def test_methods_do_not_import_each_other(name: str) -> None:
    found = imports(tree_of("hrdc_hpc.methods", name))
    assert "hrdc_hpc.methods.base" in found
    assert not found & {f"hrdc_hpc.methods.{other}" for other in registry.names("hrdc_hpc.methods")}


def test_read_without_torch() -> None:
    program = f"""
import sys
from hrdc_hpc.config import registry
import hrdc_hpc.engine.learning_rate
for package in {list(SHIPPED)}:
    assert registry.names(package)
heavy = {{"torch", "torchvision", "nvidia"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=Path(__file__).parents[2])


NEW_LOSS = """
from hrdc_hpc.config.types import PositiveFloat, options

@options
class Options:
    scale: PositiveFloat = 2.0

def build(options, classes, device):
    return lambda logits_BC, labels_B, step: options.scale * logits_BC.sum()
"""

NEW_METHOD = """
from hrdc_hpc.config.types import options
from hrdc_hpc.methods.base import Stream

@options
class Options:
    pass

class Mine:
    heads, streams, draws, primary = ("only",), (Stream("main"),), {}, "only"

def build(options, classes, device):
    return Mine()
"""


@pytest.mark.parametrize(("package", "source"), [("hrdc_hpc.losses", NEW_LOSS), ("hrdc_hpc.methods", NEW_METHOD)])
def test_a_new_one_is_one_file(package: str, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(source)
    home = importlib.import_module(package)
    monkeypatch.setattr(home, "__path__", [*home.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        assert "mine" in registry.names(package)
        assert registry.build(package, Component("mine"), make_classes(), torch.device("cpu"))
    finally:
        sys.modules.pop(f"{package}.mine", None)
        vars(home).pop("mine", None)
