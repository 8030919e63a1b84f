"""Where `--cfg inat.yaml` is: a path, a file of the working directory, or one of the configs that we ship."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

import hrdc_hpc
from hrdc_hpc.config.errors import ConfigError


def shipped_folder() -> Path:
    """Return the folder of the shipped configs: inside the package where it is installed, beside it in a checkout."""
    package = Path(hrdc_hpc.__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped() -> list[str]:
    """Return the names of the shipped runs, sorted: 'inat.yaml' ..."""
    return sorted(path.name for path in shipped_folder().glob("*.yaml"))


def find(cfg: str) -> Path:
    """Return the file that `--cfg` means, '.yaml' added if need be; ConfigError with the places that were searched.

    1. the path as given, from the working directory; 2. the shipped configs.
    """
    names = [cfg] if cfg.endswith((".yaml", ".yml")) else [cfg, f"{cfg}.yaml"]
    for folder in (Path(), shipped_folder()):
        for name in names:
            path = folder / Path(name).expanduser()
            if path.is_file():
                return _short(path)
    here = shipped()
    close = get_close_matches(Path(cfg).stem, [Path(name).stem for name in here], n=1)
    hint = f" Did you mean '{close[0]}.yaml'?" if close else ""
    places = [str(Path(names[-1]))] if Path(cfg).is_absolute() else [str(Path.cwd()), str(shipped_folder())]
    raise ConfigError([f"{cfg}: no such config in {' or '.join(places)}.{hint} Shipped: {', '.join(here)}"])


def read(path: Path) -> str:
    """Return the text of a config file; ConfigError if it cannot be read."""
    try:
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8 text; save the file as UTF-8"]) from error
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error


def _short(path: Path) -> Path:
    """Return the path relative to the working directory if it is below it: for error messages."""
    try:
        return Path(os.path.normpath(path)).relative_to(Path.cwd()) if path.is_absolute() else path
    except ValueError:
        return path
