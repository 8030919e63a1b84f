"""What the batch script asks after srun: does the job come back after a crash, a hang, a bad node? Torch-free.

The batch script outlives its ranks, and stands outside of a container: it has scontrol where they may not. So it acts,
and this program says how:

    scontrol --oneliner show job ID | python -m hrdc_hpc.cluster.teardown RUN RC

prints one line: `requeue [NODES TO KEEP AWAY FROM]`, `cancel JOBS` (the rest of a chain whose run is finished), `stay`
or `again` (SLURM did not answer); why goes to standard error, which is the job's log. A graceful stop has requeued
already; then SLURM's state says so, and the answer is `stay`. No answer at all (a file server in trouble) is asked for
again, like `again`.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster.ends import note_end
from hrdc_hpc.cluster.exit_codes import Exit
from hrdc_hpc.cluster.history import Cause, history
from hrdc_hpc.cluster.jobs import chained_after, jobs_of_launch
from hrdc_hpc.cluster.places import slurm_job_id
from hrdc_hpc.cluster.requeue import NOT_PREEMPTED, cause_of_stop, has_requeued, judge_after
from hrdc_hpc.config.load import loads
from hrdc_hpc.record.files import json_lines
from hrdc_hpc.record.folder import RunFolder

_SIGKILLED = 128 + 9
_LOST_PEER = ("closed by peer", "onnection reset", "Socket", "NCCL", "ncclRemoteError", "Broken pipe")
"""In the error of a rank whose peer is gone."""
_SUSPECT_TWICE = 2
"""Non-finite steps that a replay did not show again may have any cause once."""

SCRIPT = r"""
# a crash, a hang, a bad node: does the job come back? (hrdc_hpc/cluster/teardown.py)
rc=$?
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
for pause in 5 15 30 60 0; do  # SLURM's controller may be restarting
  signalled=
  trap signalled=1 TERM USR1 USR2  # preempted or cancelled meanwhile, and what was asked is dead: once more
  answer=$(timeout 60 scontrol --oneliner show job "$job" | @PYTHON@ -m hrdc_hpc.cluster.teardown @RUN@ "$rc")
  [ -n "$signalled" ] && continue
  case $answer in
    requeue*)
      nodes=${answer#requeue}
      trap '' TERM USR1 USR2  # SLURM sends them when it requeues, and the second line must still be said
      scontrol requeue "$job" && { [ -z "$nodes" ] || scontrol update JobId="$job" ExcNodeList="${nodes# }"; break; } ;;
    cancel*) scancel ${answer#cancel}; break ;;
    stay*) break ;;
  esac
  [ "$rc" -eq 0 ] && break
  sleep "$pause"
done
exit $rc
"""
TRAP_AT_FIRST = "trap 'sleep 600' TERM"
"""Until the ranks are there. Preempted so early, a job that leaves within its grace has failed (seen on 22.05); what is
still there at the end of the grace is requeued by SLURM, what is cancelled is killed."""
TRAP = "set +e; trap : TERM USR1 USR2"
"""This shell outlives its ranks, which save; and the user's lines may have said set -e, which would end it."""
_ID = "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
END_TIME = (
    "export SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-"
    f'$(date --date="$(squeue --noheader --job="{_ID}" --format=%e)" +%s)}}'
)
"""SLURM 22.05 does not set it."""


def after_srun(run: str, python: str) -> list[str]:
    """Lines for the batch script, right after srun; they end it with srun's exit code.

    Args:
        run: the run folder, as a word of the shell.
        python: words of the shell that start the interpreter, in its container if there is one.
    """
    return SCRIPT.replace("@PYTHON@", python).replace("@RUN@", run).splitlines()


def answer(run: Path, rc: int, shown: Mapping[str, str], job_id: str, restart: int) -> tuple[str, str]:
    """Return what the batch script should do, and why.

    Args:
        run: the run folder.
        rc: exit code of srun: the highest of its ranks'.
        shown: fields of `scontrol show job`; empty if SLURM did not answer.
        job_id: of the job or array element.
        restart: its restart count.
    """
    if rc == Exit.DONE:
        rest = chained_after(run, job_id)[:-1]  # others may wait for the last link: it starts, and ends at once
        return " ".join(["cancel", *rest]) if rest else "stay", "the run is finished"
    if not shown:
        return "again", "SLURM does not answer: nobody knows whether the job is cancelled"
    mine = [end for end in _lines(run / "logs" / "ends.jsonl") if str(end.get("job_id")) == job_id]
    mine = [end for end in mine if int(end.get("restart_count", 0)) == restart]
    if has_requeued(shown, restart) or any(_was_requeued(end) for end in mine):
        return "stay", "SLURM has requeued it already"
    if not _still_ours(shown):
        return "stay", f"SLURM says {shown.get('JobState', 'nothing')}"
    _note(run, rc, job_id, restart, mine)
    judged = judge_after(run, job_id, restart, _cause_untold(run, shown, job_id, restart))
    if not judged.comes_back:
        return "stay", f"does not come back: {judged.why}"
    if shown.get("Requeue") == "0":
        return "stay", "the job may not be requeued (--no-requeue); the same launch command goes on"
    return " ".join(["requeue", *_keep_away_from(run, jobs_of_launch(run, job_id), shown)]), judged.why


def _still_ours(shown: Mapping[str, str]) -> bool:
    """Whether the job may still be requeued: it is not cancelled, and nobody has requeued it."""
    preempted = shown.get("PreemptTime", "None") not in NOT_PREEMPTED
    return shown.get("JobState") in ("RUNNING", "TIMEOUT") or shown.get("Reason") == "TimeLimit" or preempted


def _was_requeued(end: Mapping[str, Any]) -> bool:
    """Whether it is the end that rank 0 writes once SLURM has requeued the job (requeue.after_stop)."""
    return end.get("code") == Exit.REQUEUE and end.get("cause") not in (None, "stopped")


def _cause_untold(run: Path, shown: Mapping[str, str], job_id: str, restart: int) -> Cause | None:
    """The cause of a stop after which rank 0 could not ask SLURM (in a container); None where its records tell.

    srun's exit code does not say: where a peer was slow to leave it is that of the peer, which srun has killed.
    """
    mine = [story for story in history(run) if (story.job_id, story.restart_count) == (job_id, restart)]
    last = mine[-1] if mine else None
    if last is None or last.cause != "stopped":
        return None
    return cause_of_stop([last.words.removeprefix("stopped by ").partition(";")[0]], shown)[0]


def _note(run: Path, rc: int, job_id: str, restart: int, mine: Sequence[Mapping[str, Any]]) -> None:
    """Write down that a rank was killed, if none of them could: their errors are only the echo.

    And how a start ended that wrote nothing: what is not written down cannot be counted.
    """
    first = min(mine, key=lambda end: float(end["time"]), default=None)
    echo = first is not None and (
        first.get("cause") == "stopped" or any(words in str(first["reason"]) for words in _LOST_PEER)
    )
    if rc == _SIGKILLED and (first is None or echo):
        note_end(
            run, job_id=job_id, rank=None, code=-9, restart_count=restart, cause="killed",
            reason="a rank was killed by SIGKILL (out of memory, or somebody's kill)",
        )  # fmt: skip
    elif first is None and (rc > Exit.FAILED or not _began(run, job_id, restart)):
        note_end(run, job_id=job_id, rank=None, code=rc, restart_count=restart, reason=f"srun ended with {rc}")


def _began(run: Path, job_id: str, restart: int) -> bool:
    return any((story.job_id, story.restart_count) == (job_id, restart) for story in history(run))


def _keep_away_from(run: Path, jobs: Sequence[str], shown: Mapping[str, str]) -> list[str]:
    """Nodes that failed, as one comma-separated word beside those that are excluded already; none above the cap."""
    cap = loads(RunFolder(run).config.read_text(), str(RunFolder(run).config)).cluster.requeue.excluded_nodes
    entries = [e for e in _lines(run / "health.jsonl") if str(e.get("job_id")) in jobs and e.get("node")]
    suspects = Counter(str(entry["node"]) for entry in entries if entry.get("kind") == "nonfinite")
    bad = [str(entry["node"]) for entry in entries if entry.get("kind") == "check"]
    bad += [node for node, times in suspects.items() if times >= _SUSPECT_TWICE]
    bad = list(dict.fromkeys(bad))
    before = [node for node in re.split(r",(?![^\[]*\])", shown.get("ExcNodeList", "")) if node not in ("", "(null)")]
    if not bad or set(bad) <= set(before):
        return []
    if len(bad) > cap:
        sys.stderr.write(f"{len(bad)} nodes failed, cluster.requeue.excluded_nodes allows {cap}: the newest\n")
    return [",".join(dict.fromkeys([*before, *bad[-cap:]]))] if cap else []


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json_lines(path.read_bytes()))
    except FileNotFoundError:
        return []


def main(arguments: Sequence[str]) -> None:
    """Print what to do; whatever goes wrong here, the batch script stays."""
    run, rc = Path(arguments[0]), int(arguments[1])
    shown: dict[str, str] = {}
    for key, value in re.findall(r"(\S+?)=(\S*)", sys.stdin.read()):
        shown.setdefault(key, value)
    what, why = answer(run, rc, shown, slurm_job_id() or "", int(os.environ.get("SLURM_RESTART_COUNT", 0)))
    sys.stderr.write(f"after srun ended with {rc}: {what} ({why})\n")
    sys.stdout.write(f"{what}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
