"""The elements of a sweep with their configs, and what is to be done about each. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hrdc_hpc.cluster import runs
from hrdc_hpc.cluster.ends import read_ends
from hrdc_hpc.cluster.jobs import Job, JobState, job_state, job_states, last_job
from hrdc_hpc.cluster.results import root_cause
from hrdc_hpc.cluster.sweep import Sweep
from hrdc_hpc.config.dump import to_yaml
from hrdc_hpc.config.errors import ConfigError
from hrdc_hpc.config.grid import Element
from hrdc_hpc.config.load import load, loads
from hrdc_hpc.config.paths import absolute
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.config.types import Component
from hrdc_hpc.data.preflight import preflight
from hrdc_hpc.record.folder import RunFolder

_SHOWN = 3
"""Names of elements in a message, before 'and 5 more'."""


@dataclass(frozen=True)
class Member:
    """An element and its config, which has the element's name and the sweep's folder as out_dir."""

    element: Element
    config: RunConfig

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.config.out_dir / self.config.name


@dataclass(frozen=True)
class Verdict:
    """What becomes of an element: submitted, or left alone because it is finished, or running or queued."""

    member: Member
    act: Literal["submit", "finished", "at work"]
    why: str


class Wrong:
    """Collects what is wrong with elements; the same words for several elements are told once."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, element: Element, error: ValueError) -> None:
        """Note an error of one element."""
        for problem in error.problems if isinstance(error, ConfigError) else [str(error)]:
            self._found.setdefault(problem, []).append(element.name)

    def raise_if_any(self) -> None:
        """Raise ValueError with everything, naming elements."""
        if self._found:
            raise ValueError("\n".join(f"{_names(names)}: {problem}" for problem, names in self._found.items()))


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def of_command(cfg: str, elements: Sequence[Element], given: Sequence[str]) -> list[Member]:
    """Load the config of each element, whose folder is below that of the sweep, which has the config's name.

    Raises ValueError with all problems of all elements, also for two that are the same run.
    """
    wrong, found, there = Wrong(), [], _as_configured(cfg, given)
    for element in elements:
        try:
            config = absolute(load(cfg, replace(element, values=_changing(element, there)).overrides(given)))
        except ConfigError as error:
            wrong.add(element, error)
        else:
            found.append(Member(element, replace(config, name=element.name, out_dir=config.out_dir / config.name)))
    wrong.raise_if_any()
    same: dict[str, Element] = {}
    for member in found:
        first = same.setdefault(to_yaml(replace(member.config, name="same")), member.element)
        if first is not member.element:
            wrong.add(member.element, ValueError(f"is the same run as {first.name}: every setting comes out the same"))
    wrong.raise_if_any()
    return found


def _as_configured(cfg: str, given: Sequence[str]) -> RunConfig | None:
    try:
        return load(cfg, given)
    except ConfigError:  # what is missing may be swept over; whatever else is wrong, the elements say
        return None


def _changing(element: Element, there: RunConfig | None) -> dict[str, str]:
    """The element's values without the names of components that the config has there already.

    As an override, `method=hrdc` means HRDC with its defaults; in a sweep over methods it means the config's own.
    """
    return {key: value for key, value in element.values.items() if _component(there, key) != value}


def _component(config: RunConfig | None, key: str) -> str | None:
    value: Any = config
    for part in key.split("."):
        value = getattr(value.options if isinstance(value, Component) else value, part, None)
    return value.name if isinstance(value, Component) else None


def of_sweep(sweep: Sweep, given: Sequence[str] = ()) -> list[Member]:
    """Read the elements' frozen configs, with overrides. Raises ValueError with all problems of all elements."""
    wrong, found = Wrong(), []
    for element in sweep.elements:
        file = RunFolder(sweep.run(element)).config
        try:
            if not file.is_file():
                raise ValueError(f"{file} is missing; launch the sweep's command again")
            config = absolute(loads(file.read_text(encoding="utf-8"), str(file), given))
        except ValueError as error:
            wrong.add(element, error)
        else:  # the folder may have been moved
            found.append(Member(element, replace(config, name=element.name, out_dir=sweep.path)))
    wrong.raise_if_any()
    return found


class Asked:
    """Where the jobs of several runs are, asked at once."""

    def __init__(self, members: Sequence[Member]) -> None:
        jobs = {member.run: last_job(member.run) for member in members}
        self._jobs: Mapping[Path, Job] = {run: job for run, job in jobs.items() if job is not None}
        self._states = job_states(self._jobs)

    def __call__(self, run: Path, job: Job) -> JobState:
        """Return the state of the run's job; one that came since is asked for."""
        return self._states[run] if self._jobs.get(run) == job else job_state(run, job)


def judge(members: Sequence[Member], ask: runs.Ask) -> list[Verdict]:
    """Say what becomes of each. Raises ValueError with the refusals of all, such as other settings than there."""
    wrong, found = Wrong(), []
    for member in members:
        try:
            found.append(_judged(member, ask))
        except ValueError as error:
            wrong.add(member.element, error)
    wrong.raise_if_any()
    return found


def _judged(member: Member, ask: runs.Ask) -> Verdict:
    try:
        state = runs.look(member.config, member.run, ask).state
    except runs.AtWork as error:
        return Verdict(member, "at work", error.state.removeprefix(": ").strip())
    if state == "finished":
        return Verdict(member, "finished", "is finished")
    job = last_job(member.run) if state != "nothing" else None
    if job is None:
        return Verdict(member, "submit", "was never submitted" if state != "nothing" else "is new")
    cause = root_cause(read_ends(member.run, job))
    how = f": {cause['reason']}" if cause else ""
    going = "goes on from its last checkpoint" if state == "started" else "begins anew, as nothing was saved"
    return Verdict(member, "submit", f"ended without finishing{how}; {going}")


def check_data(members: Sequence[Member]) -> None:
    """Raise ValueError naming the elements whose data set is plainly not there; the same data is looked at once."""
    wrong: dict[str, ValueError | None] = {}
    all_wrong = Wrong()
    for member in members:
        key = repr(member.config.data)
        if key not in wrong:
            try:
                preflight(member.config.data)
            except ValueError as error:
                wrong[key] = error
            else:
                wrong[key] = None
        if (problem := wrong[key]) is not None:
            all_wrong.add(member.element, problem)
    all_wrong.raise_if_any()
