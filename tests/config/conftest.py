"""A small world of components for the loader, in place of the real ones."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HEAD = """
from __future__ import annotations
from pathlib import Path
from typing import Annotated, Literal
from pydantic import Field
from hrdc_hpc.config.types import *
from hrdc_hpc.config.types import OPERATIONAL, options
@options
class Options:
"""

FILES = {
    "hrdc_hpc.methods": {
        "twin": """
    loss: Annotated[Component, Kind("hrdc_hpc.losses")] = Component("soft")
    extra: Annotated[Component, Kind("hrdc_hpc.losses")] | None = None
    more: tuple[Annotated[Component, Kind("hrdc_hpc.losses")], ...] = ()
    weighting: Literal["parabola", "equal"] = "parabola"
""",
        "plain": "    pass",
        "two_losses": '    first: Annotated[Component, Kind("hrdc_hpc.losses")]',
    },
    "hrdc_hpc.losses": {
        "soft": "    gamma: PositiveFloat = 0.1",
        "hard": """
    power: PositiveInt = 2
    limit: float | None = None
    top: Annotated[float, Field(allow_inf_nan=True)] = 0.0
""",
    },
    "hrdc_hpc.data.datasets": {
        "toy": """
    root: Annotated[Path, OPERATIONAL] = Path("data/toy")
    classes: tuple[str, ...] = ()
    flags: tuple[bool, ...] = ()
    cut: Literal["auto", 1] = "auto"
    title: str | None = None
""",
    },
    "hrdc_hpc.data.samplers": {"uniform": "    pass"},
    "hrdc_hpc.models.backbones": {"tiny": "    width: PositiveInt = 16"},
    "hrdc_hpc.engine.schedules": {
        "cosine": "    pass",
        "step": """
    milestones: tuple[PositiveInt, ...]
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones must rise; got {list(self.milestones)}")
""",
    },
}


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Packages of components with the files above and no others; the folder that holds them."""
    folder = tmp_path_factory.mktemp("components")
    with pytest.MonkeyPatch.context() as patch:
        for package, files in FILES.items():
            (folder / package).mkdir()
            module = importlib.import_module(package)
            patch.setattr(module, "__path__", [str(folder / package)])
            for name, body in files.items():
                (folder / package / f"{name}.py").write_text(HEAD + body)
                patch.delitem(sys.modules, f"{package}.{name}", raising=False)
                patch.setattr(module, name, None, raising=False)
            (folder / package / "no_component.py").write_text("")
        importlib.invalidate_caches()
        yield folder
        for package, files in FILES.items():
            for name in [*files, "no_component"]:
                sys.modules.pop(f"{package}.{name}", None)
    importlib.invalidate_caches()


RUN = """\
name: first_run
data:
  dataset: toy
model: {backbone: tiny}
method: twin
optim:
  epochs: 10
  global_batch: 32
"""


@pytest.fixture
def run_yaml() -> str:
    """A complete run of eight lines."""
    return RUN
