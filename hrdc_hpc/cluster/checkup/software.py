"""Python and packages, from their metadata: none of them is imported. Torch-free."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hrdc_hpc
from hrdc_hpc.cluster.checkup.finding import Finding, Role, ok, problem, warning

_OLDEST = (3, 11)
_INSTALL = {"": "pip install -c constraints.txt .", "train": "pip install -c constraints.txt '.[train]'"}
_ANY_CUDA = re.compile(r"nvidia-dali-cuda\d+")
_COMPARE = {
    ">=": lambda have, want: have >= want, "<=": lambda have, want: have <= want, "<": lambda have, want: have < want,
    ">": lambda have, want: have > want, "==": lambda have, want: have == want, "!=": lambda have, want: have != want,
}  # fmt: skip


@dataclass(frozen=True)
class Requirement:
    """A package and the range of its versions, as pyproject.toml says."""

    name: str
    ranges: tuple[tuple[str, str], ...]
    """Operator and version, e.g. ('>=', '2.11')."""
    extra: str
    """'' for what every command needs, 'train' for what ranks need besides."""

    def allows(self, version: str) -> bool:
        """Whether a version is in range; by its numbers, so 2.11.0rc1 counts as 2.11.0."""
        have = _numbers(version)
        for operator, bound in self.ranges:
            want = _numbers(bound)
            width = max(len(have), len(want))
            if not _COMPARE[operator](_padded(have, width), _padded(want, width)):
                return False
        return True

    def __str__(self) -> str:
        return self.name + ",".join(operator + version for operator, version in self.ranges)


def check(role: Role) -> Iterator[Finding]:
    """Yield findings on Python, packages and the compiler."""
    version = platform.python_version()
    if sys.version_info < _OLDEST:
        yield problem("Python", version, "too old for this package", "use Python 3.11 or newer")
    else:
        yield ok("Python", f"{version}, {sys.executable}")
    wanted = requirements()
    if not wanted:
        yield warning(
            "packages", "neither metadata of hrdc-hpc nor a pyproject.toml beside it",
            "their versions cannot be compared", "install the package: pip install .",
        )  # fmt: skip
    for extra, needed in (("", True), ("train", role != "login")):
        yield _packages([one for one in wanted if one.extra == extra], extra, needed=needed)
    yield _compiler(role)


def requirements() -> list[Requirement]:
    """Return what the package needs on this platform: from pyproject.toml in a checkout, else from the metadata."""
    project = Path(hrdc_hpc.__file__).resolve().parents[1] / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        lines = [(line, "") for line in table["dependencies"]]
        lines += [(line, "train") for line in table["optional-dependencies"]["train"]]
    else:
        try:
            told = importlib.metadata.requires("hrdc-hpc") or []
        except importlib.metadata.PackageNotFoundError:
            return []
        lines = [(line, "train" if "'train'" in line.replace('"', "'") else "") for line in told]
        lines = [(line, extra) for line, extra in lines if extra or "extra" not in line]
    read = (_requirement(line, extra) for line, extra in lines if _for_this_platform(line))
    return [one for one in read if one]


def _requirement(line: str, extra: str) -> Requirement | None:
    match = re.match(r"\s*([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*\(?([^;)]*)", line)
    if match is None:
        return None
    return Requirement(match[1], tuple(re.findall(r"(>=|<=|==|!=|<|>)\s*([0-9][0-9.]*)", match[2])), extra)


def _for_this_platform(line: str) -> bool:
    match = re.search(r"platform_machine == ['\"](\w+)['\"]", line)
    return match is None or match[1] == platform.machine()


def _packages(wanted: list[Requirement], extra: str, *, needed: bool) -> Finding:
    """Return one finding for all packages of an extra."""
    what = f"packages for {'training' if extra else 'all commands'}"
    installed = {dist.name.lower().replace("_", "-"): dist.version for dist in importlib.metadata.distributions()}
    have = {one: _version(one.name, installed) for one in wanted}
    missing = [str(one) for one, version in have.items() if version is None]
    other = [
        f"{one.name} {version} (wanted {one})" for one, version in have.items() if version and not one.allows(version)
    ]
    if not missing and not other:
        return ok(what, ", ".join(f"{one.name} {version}" for one, version in have.items()))
    parts = (("missing", missing), ("out of range", other))
    found = "; ".join(f"{name}: {', '.join(some)}" for name, some in parts if some)
    if not needed:
        return Finding(what, "ok", f"{found}; a login node does not need them")
    if missing:
        return problem(what, found, "training would stop at its start", _INSTALL[extra])
    return warning(what, found, "not tested with these versions", _INSTALL[extra])


def _version(name: str, installed: dict[str, str]) -> str | None:
    """Version of a package; of DALI that of the build for any CUDA."""
    if _ANY_CUDA.fullmatch(name):
        return next((version for other, version in installed.items() if _ANY_CUDA.fullmatch(other)), None)
    return installed.get(name.lower().replace("_", "-"))


def _compiler(role: Role) -> Finding:
    found = [f"{name} ({path})" for name in ("cc", "gcc", "g++", "clang") if (path := shutil.which(name))]
    if found:
        return ok("compiler", found[0])
    if role == "login":
        return ok("compiler", "none; a login node does not need one")
    return warning(
        "compiler", "none of cc, gcc, g++, clang is on the PATH", "torch.compile cannot build its kernels",
        "module load gcc (cluster.setup), or set compute.compile=false",
    )  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.match(r"[0-9.]*", version.partition("+")[0])[0].split(".") if part)  # type: ignore[index]


def _padded(version: tuple[int, ...], width: int) -> tuple[int, ...]:
    return version + (0,) * (width - len(version))
