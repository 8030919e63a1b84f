"""Reads a run's config, and writes it back: YAML and overrides to `RunConfig`, torch-free.

    config = load("inat.yaml", ["optim.lr=0.2", "method=ce"])

A wrong config is answered with every problem at once, each with its place, key and mend:

    inat.yaml:12: optim.learning_rate: unknown key. Did you mean 'lr'?
    override 'optim.epochs=ten': optim.epochs: must be a whole number above 0; got 'ten'
"""

from __future__ import annotations

from collections.abc import Sequence

from hrdc_hpc.config import overrides as _overrides
from hrdc_hpc.config import profiles
from hrdc_hpc.config.dump import to_yaml
from hrdc_hpc.config.errors import ConfigError, Place, Problems
from hrdc_hpc.config.find import find, read
from hrdc_hpc.config.reader import Reader
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.config.tree import Items, Scalar, Table, parse

__all__ = ["ConfigError", "load", "loads", "to_yaml"]


def load(cfg: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config that `--cfg` names (a path, or a shipped one such as inat.yaml), with overrides and its profile.

    Raises ConfigError with all problems.
    """
    path = find(cfg)
    return _loads(read(path), str(path), overrides, with_profile=True)


def loads(text: str, place: str = "config.yaml", overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config from YAML text, as a run folder has it: complete, so that no cluster profile is looked for.

    `place` is what errors call it. Raises ConfigError with all problems.
    """
    return _loads(text, place, overrides, with_profile=False)


def _loads(text: str, place: str, overrides: Sequence[str], *, with_profile: bool) -> RunConfig:
    problems = Problems()
    start = Place(place, 1)
    root = parse(text, start, problems)
    if isinstance(root, Scalar) and root.is_null:
        root = Table(start, {})
    if isinstance(root, Scalar | Items):
        problems.add(root.place, (), "must be a mapping of keys to values, such as 'name: first_run'")
    result = None
    if isinstance(root, Table):
        root = _overrides.apply(root, overrides, problems)
        root = profiles.apply(root, problems) if with_profile else root
        result = Reader(problems).root(RunConfig, root)
    problems.raise_if_any()
    assert isinstance(result, RunConfig)
    return result
