"""Reads a run's config, and writes it back: YAML and overrides to `RunConfig`, torch-free.

    config = load("inat.yaml", ["optim.lr=0.2", "method=ce"])

A wrong config is answered with every problem at once, each with its place, key and mend:

    inat.yaml:12: optim.learning_rate: unknown key. Did you mean 'lr'?
    override 'optim.epochs=ten': optim.epochs: must be a whole number above 0; got 'ten'
"""

from __future__ import annotations

from collections.abc import Sequence

from hrdc_hpc.config import overrides as _overrides
from hrdc_hpc.config.dump import to_yaml
from hrdc_hpc.config.errors import ConfigError, Place, Problems
from hrdc_hpc.config.find import find
from hrdc_hpc.config.reader import Reader
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.config.tree import Items, Scalar, Table, parse

__all__ = ["ConfigError", "load", "loads", "to_yaml"]


def load(cfg: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the config that `--cfg` names (a path, or a shipped one such as inat.yaml), with overrides.

    Raises ConfigError with all problems.
    """
    path = find(cfg)
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8 text; save the file as UTF-8"]) from error
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    return loads(text, str(path), overrides)


def loads(text: str, place: str = "config.yaml", overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config from YAML text; `place` is what errors call it. Raises ConfigError with all problems."""
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
        result = Reader(problems).root(RunConfig, root)
    problems.raise_if_any()
    assert isinstance(result, RunConfig)
    return result
