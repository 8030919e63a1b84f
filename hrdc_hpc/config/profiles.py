"""Cluster profiles: what every run on one cluster says alike, in one file. Torch-free.

A profile holds keys of the section `cluster`, without that word above them. Who says what, the first one wins:

1. the command line (flags and key=value)
2. the run's config
3. the profile that `cluster.profile` or --profile names
4. the defaults (config/cluster.py)

Mappings (environment, sbatch, container, requeue) are joined key by key in that order; all else is taken whole. The
run folder's config.yaml holds the outcome, complete: neither an attempt nor a launch of it looks for a profile.
"""

from __future__ import annotations

import os
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from hrdc_hpc.config import hints
from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.errors import ConfigError, Place, Problems
from hrdc_hpc.config.find import read, shipped_folder
from hrdc_hpc.config.tree import Node, Scalar, Table, parse


def user_folder() -> Path:
    """Return the folder of the user's own profiles, ~/.config/hrdc_hpc/clusters unless XDG_CONFIG_HOME says another."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "hrdc_hpc" / "clusters"


def shipped_profiles() -> list[str]:
    """Return the names of the shipped profiles, sorted: 'apptainer' ..."""
    return sorted(path.stem for path in _shipped().glob("*.yaml"))


def find_profile(name: str) -> Path:
    """Return the file of a profile; ConfigError with the places that were searched.

    1. a path ('/' or .yaml in it), from the working directory; 2. the user's own; 3. the shipped ones.
    """
    file = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    path = Path(file).expanduser()
    is_path = file == name or "/" in name
    places = [*([Path()] if is_path else []), *([] if path.is_absolute() else [user_folder(), _shipped()])]
    for place in places:
        if (place / path).is_file():
            return place / path
    known = sorted({*shipped_profiles(), *(one.stem for one in user_folder().glob("*.yaml"))})
    close = get_close_matches(path.stem, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    where = " or ".join(str(Path.cwd() if place == Path() else place) for place in places) or "that place"
    raise ConfigError([f"no such cluster profile in {where}.{hint} Known: {', '.join(known)}"])


def says(name: str, key: str) -> str | None:
    """Return what a profile has for a key, as it is written; None if it has none, or there is no such profile."""
    try:
        profile = parse(read(find_profile(name)), Place(name, 1), Problems())
    except ConfigError:
        return None
    value = profile.entries.get(key) if isinstance(profile, Table) else None
    return value.text if isinstance(value, Scalar) and not value.is_null else None


def apply(root: Table, problems: Problems) -> Table:
    """Return a run's config with what its cluster profile says beside it; what is wrong is noted in `problems`."""
    cluster = root.entries.get("cluster")
    named = cluster.entries.get("profile") if isinstance(cluster, Table) else None
    if not isinstance(cluster, Table) or not isinstance(named, Scalar) or named.is_null:
        return root
    if hints.fields(Cluster).keys() <= cluster.entries.keys():
        if named.place.line is None:
            what = "says nothing more: this config is that of a run folder, complete. Launch the run's first config"
            problems.add(named.place, ("cluster", "profile"), what)
        return root
    try:
        path = find_profile(named.text)
        profile = _read(path, problems)
    except ConfigError as error:
        problems.add(named.place, ("cluster", "profile"), str(error))
        return root
    if not path.is_relative_to(_shipped()) and not path.is_relative_to(user_folder()):
        named = replace(named, text=str(path.absolute()))  # the run may be launched again from elsewhere
    joined = _under(replace(cluster, entries={**cluster.entries, "profile": named}), profile)
    return replace(root, entries={**root.entries, "cluster": joined})


def _read(path: Path, problems: Problems) -> Table:
    """The keys of a profile; none, with the problem noted, if it is not one. Raises ConfigError."""
    start = Place(str(path), 1)
    profile = parse(read(path), start, problems)
    nothing = Table(start, {})
    if not isinstance(profile, Table):
        if profile is not None and not (isinstance(profile, Scalar) and profile.is_null):
            problems.add(profile.place, (), "must be a mapping of keys to values, such as 'partition: gpu'")
        return nothing
    for key, instead in (
        ("profile", "one profile does not name another"),
        ("cluster", "write the keys without 'cluster:' above"),
    ):
        if wrong := profile.entries.get(key):
            problems.add(wrong.place, (key,), f"does not belong into a profile: {instead}")
            return nothing
    return profile


def _under(above: Table, below: Table) -> Table:
    """Return `above` with the keys of `below` that it does not have."""
    entries: dict[str, Node] = dict(above.entries)
    for key, node in below.entries.items():
        mine = entries.get(key)
        if mine is None:
            entries[key] = node
        elif isinstance(mine, Table) and isinstance(node, Table):
            entries[key] = _under(mine, node)
    return replace(above, entries=entries)


def _shipped() -> Path:
    return shipped_folder() / "clusters"
