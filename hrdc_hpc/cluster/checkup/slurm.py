"""SLURM: its programs, whether it answers, and the settings on which coming back depends. Torch-free."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping

from hrdc_hpc.cluster import scheduler
from hrdc_hpc.cluster.checkup.finding import Finding, Role, ok, problem, warning
from hrdc_hpc.cluster.scheduler import SchedulerError

_NEEDED = ("sbatch", "squeue", "scontrol", "srun", "scancel")
_USEFUL = {"sacct": "how a job ended that left no word", "sacctmgr": "limits of your accounts"}
_SHORT_KILL_S = 20
_NONE = ("", "NONE", "(null)", "UNLIMITED", "N/A")


def check(role: Role, partition: str | None) -> Iterator[Finding]:
    """Yield findings on SLURM; `partition`: the one that is meant, else all are told."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if len(missing) == len(_NEEDED):
        means = "runs can be trained on this machine only: --cluster local"
        if role == "node":
            means = "the job cannot requeue itself: the batch script has to"
        if partition is not None:
            mend = "go to a login node, or leave --partition out"
            yield problem("SLURM", "none of its programs is on the PATH", means, mend)
        else:
            yield ok("SLURM", f"none of its programs is on the PATH; {means}")
        return
    if missing:
        yield problem(
            "SLURM's programs", f"missing: {', '.join(missing)}", "jobs cannot be submitted, watched and requeued",
            "install SLURM's client programs, or put them on the PATH",
        )  # fmt: skip
    absent = {name: use for name, use in _USEFUL.items() if shutil.which(name) is None}
    try:
        config = parse_config(scheduler.call("scontrol", "show", "config"))
        partitions = parse_partitions(scheduler.call("scontrol", "--oneliner", "show", "partition"))
    except SchedulerError as error:
        mend = "scontrol ping; is SLURM_CONF right, munge running, the controller reachable from here?"
        yield problem("SLURM's controller", str(error), "nothing can be submitted or watched now", mend)
        return
    version = config.get("SLURM_VERSION", "of an unknown version")
    yield ok("SLURM's controller", f"{config.get('ClusterName', '?')} answers, SLURM {version}")
    yield _accounting(config, absent)
    yield from judge_config(config)
    yield from judge_partitions(config, partitions, partition)


def parse_config(text: str) -> dict[str, str]:
    """Read `scontrol show config`."""
    return dict(re.findall(r"^(\S+)\s*= ?(.*?)\s*$", text, flags=re.MULTILINE))


def parse_partitions(text: str) -> dict[str, dict[str, str]]:
    """Read `scontrol --oneliner show partition`: settings by the partition's name."""
    read = (dict(re.findall(r"(\w+)=(\S*)", line)) for line in text.splitlines())
    return {fields["PartitionName"]: fields for fields in read if "PartitionName" in fields}


def judge_config(config: Mapping[str, str]) -> Iterator[Finding]:
    """Yield findings on the settings of the whole cluster."""
    requeues = config.get("JobRequeue", "1")
    asked = "; ours are requeued all the same: they ask for it (--requeue)" if requeues in ("0", "NO") else ""
    yield ok("JobRequeue", f"{requeues}{asked}")
    wait = int((re.match(r"\d+", config.get("KillWait", "30")) or ["30"])[0])
    if wait < _SHORT_KILL_S:
        yield warning(
            "KillWait", f"{wait} s", "a run that is cancelled, or preempted without grace, has no longer to save",
            "save more often: checkpoint.every_steps",
        )  # fmt: skip
    else:
        yield ok("KillWait", f"{wait} s between SIGTERM and SIGKILL")
    yield ok("PreemptMode", f"{config.get('PreemptMode', '?')}, by {config.get('PreemptType', '?')}")
    most = config.get("MaxArraySize", "1001")
    if most.isdecimal() and int(most) < 2:
        yield warning("MaxArraySize", most, "there are no job arrays here", "launch the runs of a sweep one by one")
    else:
        yield ok("MaxArraySize", f"{most}: larger sweeps are split")


def judge_partitions(
    config: Mapping[str, str], partitions: Mapping[str, Mapping[str, str]], wanted: str | None
) -> Iterator[Finding]:
    """Yield findings on partitions: on the wanted one, else on all."""
    if wanted is not None and wanted not in partitions:
        known = ", ".join(partitions) or "none"
        yield problem(f"partition {wanted}", "not there", f"known to you: {known}", "choose one of these")
        return
    for name, fields in partitions.items():
        if wanted in (None, name):
            yield _partition(name, fields, config)


def _partition(name: str, fields: Mapping[str, str], config: Mapping[str, str]) -> Finding:
    what, mode = f"partition {name}", fields.get("PreemptMode", config.get("PreemptMode", "OFF"))
    limits = [f"{fields.get('TotalNodes', '?')} nodes, {fields.get('TotalCPUs', '?')} CPUs"]
    limits += [f"time limit {fields.get('MaxTime', '?')}", f"default {fields.get('DefaultTime', '?')}"]
    limits += [f"{key} {fields[key]}" for key in ("MaxNodes",) if fields.get(key, "") not in _NONE]
    limits += [f"preempted by {mode}, grace {fields.get('GraceTime', '0')} s"] if mode != "OFF" else ["not preempted"]
    found = ", ".join(limits)
    state = fields.get("State", "UP")
    if state != "UP":
        return warning(what, f"{state}; {found}", "jobs wait or are refused there", "choose another partition")
    if mode == "CANCEL":
        return warning(
            what, found, "a preempted job is cancelled, not requeued",
            "launch --chain 6, or another partition; the same launch command goes on from the last checkpoint",
        )  # fmt: skip
    if mode not in ("OFF",) and fields.get("GraceTime", "0") in ("0", "00:00:00"):
        wait = config.get("KillWait", "30 sec")
        return Finding(
            what, "ok", found, f"a preempted run has KillWait ({wait}) to save; what does not fit is trained again"
        )
    return ok(what, found)


def _accounting(config: Mapping[str, str], absent: Mapping[str, str]) -> Finding:
    kind = config.get("AccountingStorageType", "")
    if not kind.endswith("slurmdbd"):
        return ok(
            "accounting", f"none ({kind or 'not told'}): of a job that squeue has forgotten the run folder alone knows"
        )
    if absent:
        means = f"unknown will be: {', '.join(absent.values())}"
        mend = "put SLURM's client programs on the PATH"
        return warning("accounting", f"there, but not {', '.join(absent)}", means, mend)
    return ok("accounting", f"{kind}; enforced: {config.get('AccountingStorageEnforce', 'nothing')}")
