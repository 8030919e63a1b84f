"""The batch script's own lines: what comes before srun, how the ranks are started, what comes after. Torch-free."""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hrdc_hpc.cluster import nccl, teardown
from hrdc_hpc.cluster.shape import is_malleable, ranks_per_node
from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.schema import RunConfig
from hrdc_hpc.record.folder import RunFolder

WAIT_S = 600
"""A rank may end this much later than the first one: rank 0 has results to write, and asks for a requeue."""
_OURS = {
    "output", "error", "input", "unbuffered", "export", "kill-on-bad-exit", "wait", "ntasks", "ntasks-per-node",
    "nodes", "cpus-per-task", "cpu-bind", "gpu-bind", "label", "chdir", "container-image", "container-mounts",
    "container-workdir", "container-env",
}  # fmt: skip
"""srun options that the launcher writes by itself or needs as they are."""


ELEMENT = "$SLURM_ARRAY_TASK_ID"
"""Name of the run folder in the script of an array (array.py). No run has it: names have no '$'."""


def shell(run: Path, *below: str) -> str:
    """Return the run folder, or what lies below it, as a word of the batch script."""
    if run.name != ELEMENT:
        return shlex.quote(str(run.joinpath(*below)))
    return "/".join([shlex.quote(str(run.parent)), f'"{ELEMENT}"', *below])


def check(config: RunConfig, run: Path) -> None:
    """Raise ValueError for what the script could not carry out."""
    for word in config.cluster.srun:
        name = word.removeprefix("--").partition("=")[0]
        if begun := sorted(ours for ours in _OURS if ours.startswith(name)):
            raise ValueError(f"cluster.srun: {word}: cannot be set (--{begun[0]}); the launcher needs its own")
    if config.cluster.container is None:
        return
    for path in _bound_paths(config, run):
        if {",", ":"} & set(str(path)):
            raise ValueError(f"cluster.container: {str(path)!r} cannot be bound: its path holds ',' or ':'; move it")


def before(config: RunConfig, run: Path) -> list[str]:
    """Lines in front of srun: the node's software, variables and folders, with the user's setup, then our own."""
    cluster = config.cluster
    lines = [teardown.TRAP_AT_FIRST, *node_lines(cluster)]
    code = shell(run, RunFolder(run).code.name)
    if cluster.container is None:
        lines.append(f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"')  # a module may have set it
    else:
        lines.append(f"export PYTHONPATH={code}  # the host's own packages are not those of the image")
    lines.append("export PYTHONSAFEPATH=1  # or python -m would put the working directory in front")
    if cluster.container is not None and cluster.container.kind == "apptainer":
        names = [*_variables(cluster), "PYTHONPATH", "PYTHONSAFEPATH"]
        lines.append("# or the image's own values would win")
        lines += [f'export APPTAINERENV_{name}="${name}"' for name in names]
    return [*lines, teardown.TRAP, teardown.END_TIME]


def node_lines(cluster: Cluster) -> list[str]:
    """What the node needs whoever starts the ranks: modules, virtual environment, variables, setup, folders."""
    lines = []
    if cluster.modules:
        lines += [
            "command -v module > /dev/null || source /etc/profile  # a batch script is no login shell",
            f"module load {' '.join(cluster.modules)} || exit 1",
        ]
    if cluster.venv:
        lines.append(f"source {_words(f'{cluster.venv}/bin/activate')} || exit 1")
    lines += [f"export {name}={_words(value)}" for name, value in _variables(cluster).items()]
    return [*lines, *cluster.setup, *_make_node_folders(cluster)]


def after(config: RunConfig, run: Path) -> list[str]:
    """Lines behind srun, which end the script with srun's exit code."""
    return teardown.after_srun(shell(run), python_here(config, run))


def srun_line(config: RunConfig, run: Path, arguments: str, output: str) -> str:
    """Return the line that starts all ranks as `python ARGUMENTS`. `output`: srun's pattern of the log files."""
    cluster = config.cluster
    ranks = ranks_per_node(cluster)
    options = [
        "--unbuffered",
        # sbatch --export=NONE, or SBATCH_EXPORT in the user's shell, would keep our variables from the ranks
        "--export=ALL",
        f"--output {shlex.quote(output)}",
        "--kill-on-bad-exit=1",  # a crashed rank must not leave its peers hanging
        f"--wait={WAIT_S}",
        # srun of SLURM 22.05 to 23.11 ignores the job's CPUs per task
        f"--cpus-per-task={cluster.cpus_per_rank}",
    ]
    if is_malleable(cluster):
        options.append(f'--ntasks="$(({ranks} * SLURM_JOB_NUM_NODES))" --ntasks-per-node={ranks}')
    options += [f"--{kind}-bind={bind}" for kind in ("cpu", "gpu") if (bind := getattr(cluster, f"{kind}_bind"))]
    options += [_words(word) for word in (*nccl.srun_options(cluster), *cluster.srun)]
    return f"srun {' '.join([*options, interpreter(config, run)])} {arguments}"


def python_here(config: RunConfig, run: Path) -> str:
    """Return the command that is the ranks' Python for the batch script itself, on the job's first node."""
    command = interpreter(config, run)
    container = config.cluster.container
    if container is not None and container.kind == "pyxis":  # srun alone can start it
        return f"srun --export=ALL --nodes=1 --ntasks=1 --cpus-per-task={config.cluster.cpus_per_rank} {command}"
    return command


def python(cluster: Cluster) -> str:
    """Return the interpreter on the node, quoted for the shell."""
    own = sys.executable if cluster.venv is None and cluster.container is None else "python3"
    return _words(cluster.python) if cluster.python else shlex.quote(own)


def _variables(cluster: Cluster) -> dict[str, str]:
    chosen = dict(nccl.variables(cluster))
    if cluster.scratch:
        chosen["TMPDIR"] = cluster.scratch
    if cache := cluster.compile_cache:
        # PyTorch, Compile Time Caching Configuration; Triton; CUDA programming guide, CUDA Environment Variables
        chosen |= {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TRITON_CACHE_DIR": f"{cache}/triton"}
        chosen["CUDA_CACHE_PATH"] = f"{cache}/cuda"
    return chosen | {name: str(value) for name, value in cluster.environment.items()}


def _make_node_folders(cluster: Cluster) -> Iterator[str]:
    """One step that makes the node-local folders on every node; the batch script runs on the first alone."""
    folders = ['"$TMPDIR"'] if cluster.scratch else []
    if cluster.compile_cache:
        folders += ['"$TORCHINDUCTOR_CACHE_DIR"', '"$TRITON_CACHE_DIR"', '"$CUDA_CACHE_PATH"']
    if folders:
        step = 'srun --export=ALL --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1'
        yield f"{step} mkdir -p {' '.join(folders)} || exit 1"


def interpreter(config: RunConfig, run: Path) -> str:
    """Return the ranks' Python for the shell, in its container if there is one; of pyxis, it follows 'srun'."""
    cluster, container = config.cluster, config.cluster.container
    if container is None:
        return python(cluster)
    paths = [shlex.quote(str(path)) for path in _bound_paths(config, run)]
    if cluster.scratch:
        paths.append('"$TMPDIR"')
    if cluster.compile_cache:
        paths.append(_words(cluster.compile_cache))
    folder = shell(run)
    if container.kind == "apptainer":
        binds = [f"--bind {path}" for path in [*paths, *map(_words, container.binds)]]
        words = ["apptainer exec", *["--nv"] * (cluster.gpus_per_node > 0), *binds, f"--pwd {folder}"]
        return " ".join([*words, *map(_words, container.options), _words(container.image), python(cluster)])
    mounts = ",".join([*(f"{path}:{path}" for path in paths), *(_words(_both_ways(bind)) for bind in container.binds)])
    names = ",".join([*_variables(cluster), "PYTHONPATH", "PYTHONSAFEPATH"])
    words = [f"--container-image={_words(container.image)}", f"--container-mounts={mounts}"]
    words += [f"--container-workdir={folder}", f"--container-env={names}"]
    return " ".join([*words, *map(_words, container.options), python(cluster)])


def _both_ways(bind: str) -> str:
    """SOURCE as SOURCE:SOURCE, which pyxis wants."""
    return bind if ":" in re.sub(r"\$\{[^}]*\}", "", bind) else f"{bind}:{bind}"


def _bound_paths(config: RunConfig, run: Path) -> list[Path]:
    """The run folder, for an element its sweep's, and the config's paths, or what is above one yet to be made."""
    code = RunFolder(run).code  # of an element, it is a link to the sweep's
    own = run.parent.parent.parent if run.name == ELEMENT else code.resolve().parent if code.is_symlink() else run
    named = _paths([config.data, config.model, config.method])
    found = {own, *(next(one for one in (path, *path.parents) if one.exists()) for path in named)} - {Path("/")}
    return sorted(path for path in found if not any(path != other and path.is_relative_to(other) for other in found))


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _paths(one)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _paths(getattr(value, field.name))


def _words(text: str) -> str:
    """Return a text of the config for the shell: as it is, or in double quotes where variables are filled in."""
    return f'"{text}"' if "$" in text else shlex.quote(text)
