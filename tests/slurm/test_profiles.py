"""A profile with all that a node needs, on a real SLURM: what the ranks, in a stand-in for a container, see of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launching import CONFIG
from slurm_cluster import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

PROFILE = """
partition: gpu
ranks_per_node: 2
cpus_per_rank: 2
container: {kind: apptainer, image: $TOP/x.sif, binds: [/usr/share:/data:ro]}
python: $TOP/python
environment: {FLAVOUR: "long tail", BEHIND: "$FLAVOUR!"}
nccl: ethernet
scratch: $TOP/scratch/$SLURM_JOB_ID
compile_cache: $TOP/${NOT_THERE:-cache}
setup: [export EARLY=1]
"""
APPTAINER = """#!/bin/bash
# as apptainer: options, image, command; the image has a PYTHONPATH and a FLAVOUR of its own
for name in ${!APPTAINERENV_*}; do kept+=("${name#APPTAINERENV_}=${!name}"); done
arguments=("$@")
while [ "$1" != "$TOP/x.sif" ]; do shift; done
exec env PYTHONPATH=/image FLAVOUR=plain "${kept[@]}" ARGUMENTS="$(printf '%s\\n' "${arguments[@]}")" "${@:2}"
"""
PYTHON = f"""#!{sys.executable} -I
import json, os, pathlib, sys
keys = ["SLURM_PROCID", "FLAVOUR", "BEHIND", "EARLY", "NCCL_NET", "PYTHONPATH", "TMPDIR", "TRITON_CACHE_DIR",
        "SLURM_CPUS_PER_TASK", "ARGUMENTS", "SLURM_NODEID"]
seen = {{key: os.environ.get(key) for key in keys}} | {{"words": sys.argv[1:]}}
seen["made"] = all(pathlib.Path(os.environ[key]).is_dir() for key in ("TMPDIR", "TRITON_CACHE_DIR"))
name = os.environ.get("SLURM_PROCID", "") if "-u" in sys.argv else "teardown"
pathlib.Path(os.environ["TOP"], "seen-" + name).write_text(json.dumps(seen))
"""


def test_a_profile_reaches_the_ranks(slurm: Slurm, tmp_path: Path) -> None:
    top = tmp_path / "the top"
    top.mkdir()
    for name, text in (("apptainer", APPTAINER), ("python", PYTHON), ("here.yaml", PROFILE), ("small.yaml", CONFIG)):
        (top / name).write_text(text)
        (top / name).chmod(0o755)
    environ = slurm.env | {"TOP": str(top), "PATH": f"{top}:{slurm.env['PATH']}"}
    out = top / "it's out"
    command = [sys.executable, "-m", "hrdc_hpc.launch", "--cfg", f"{top}/small.yaml", "--profile", f"{top}/here.yaml"]
    options = ["--nodes", "2", "--out-dir", str(out), f"data.dataset.root={top}"]
    done = subprocess.run([*command, *options], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.partition("job ")[2].split()[0]
    state = slurm.wait_job(job, 60)
    logs = "".join(file.read_text() for file in (out / "small" / "logs").glob("*.out"))
    assert state == "COMPLETED", logs

    seen = {name: json.loads((top / f"seen-{name}").read_text()) for name in ("0", "1", "2", "3", "teardown")}
    run = out / "small"
    for rank in range(4):
        mine = seen[str(rank)]
        assert mine["SLURM_NODEID"] == str(rank // 2)
        assert mine["SLURM_CPUS_PER_TASK"] == "2"
        assert mine["words"] == ["-u", "-m", "submitit.core._submit", str(run / "logs")]
    for one in seen.values():
        assert (one["FLAVOUR"], one["BEHIND"], one["EARLY"], one["NCCL_NET"]) == (
            "long tail",
            "long tail!",
            "1",
            "Socket",
        )
        assert one["PYTHONPATH"] == str(run / "code"), "neither the host's nor the image's"
        assert one["TMPDIR"] == f"{top}/scratch/{job}"
        assert one["TRITON_CACHE_DIR"] == f"{top}/cache/triton"
        assert one["made"]
        binds = [f"--bind\n{bind}" for bind in (top, f"{top}/scratch/{job}", f"{top}/cache", "/usr/share:/data:ro")]
        assert one["ARGUMENTS"].startswith("\n".join(["exec", *binds, "--pwd", str(run), f"{top}/x.sif\n"]))
    assert seen["teardown"]["words"] == ["-m", "hrdc_hpc.cluster.teardown", str(run), "0"]
