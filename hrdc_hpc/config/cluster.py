"""What is asked of the scheduler, and what a node needs before the program runs: the section `cluster`. Torch-free.

A cluster profile (configs/clusters/) is a file with some of these keys. Texts that say they are expanded may hold
$NAME, ${NAME} and ${NAME:-default}, which the batch script fills in on the node; nothing else of the shell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from hrdc_hpc.config.nodes import ALLOWED_RANGE, RANGE, node_range
from hrdc_hpc.config.types import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rule,
    demand,
    options,
)

_BLANK = str.maketrans("\n\t", "  ")
_VARIABLE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*(:-[A-Za-z0-9_./-]*)?\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _is_expanded_safely(text: str) -> bool:
    """Whether the text, in the shell's double quotes, means itself with variables filled in."""
    return text.isprintable() and not set('$`"\\') & set(_VARIABLE.sub("", text))


def _expanded(field: str, text: str | None) -> Rule:
    what = 'one line in which only $NAME, ${NAME} and ${NAME:-default} stand for something else (no other $, `, ", \\)'
    return Rule(field, text is None or _is_expanded_safely(text), f"must be {what}; got {text!r}")


def _one_line(field: str, text: str | None) -> Rule:
    return Rule(field, (text or "").isprintable(), f"must be one line of printable characters; got {text!r}")


def _on_the_node(field: str, text: str | None) -> Rule:
    return Rule(
        field, text is None or text.startswith(("/", "$")), f"must be an absolute path, such as $HOME/x; got {text!r}"
    )


@options
class Container:
    """An image that the ranks run in. It needs Python with what the run imports; the code itself comes from the run."""

    kind: Literal["apptainer", "pyxis"]
    """How it is started: `apptainer exec`, or srun's own options of NVIDIA's pyxis."""
    image: str
    """A .sif file or URI for apptainer, an enroot URI or .sqsh file for pyxis; expanded."""
    binds: tuple[str, ...] = ()
    """Further folders that are seen inside: SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro; expanded. The run folder, the
    paths of the config, scratch and compile_cache are seen anyway, under their own names."""
    options: tuple[str, ...] = ()
    """Further words for `apptainer exec`, or for srun with pyxis, such as --container-writable; expanded."""

    def __post_init__(self) -> None:
        """Refuse what the batch script could not hold."""
        demand(
            _expanded("image", self.image),
            Rule("image", bool(self.image), "must not be empty"),
            *(_expanded("binds", bind) for bind in self.binds),
            *(_on_the_node("binds", bind) for bind in self.binds),
            *(Rule("binds", "," not in bind, f"must not hold ','; got {bind!r}") for bind in self.binds),
            *(_expanded("options", word) for word in self.options),
        )


@options
class Requeue:
    """How often a job comes back by itself, by the cause of its last end; counted within one job id.

    0 means never. Whatever is used up, the run is saved, and a new launch goes on with it.
    """

    preemptions: NonNegativeInt = 1000
    """Preempted, or requeued by SLURM because a node was lost."""
    time_limits: NonNegativeInt = 1000
    failures: NonNegativeInt = 10
    """Crashed, or a rank was killed."""
    hangs: NonNegativeInt = 5
    """Left by the watchdog."""
    bad_nodes: NonNegativeInt = 5
    """A node failed its health check."""
    excluded_nodes: NonNegativeInt = 4
    """Nodes that the job may be kept away from because they failed; more, and it might pend for ever."""
    without_progress: PositiveInt = 2
    """Attempts in a row that may end by themselves without a new checkpoint."""
    without_progress_preempted: PositiveInt = 10
    """The same where the cluster ended them: a busy night may preempt a run twice while it starts up."""
    gpu_hours: PositiveFloat | None = None
    """Of all attempts together, after which it does not come back; rank-hours on CPUs. Unset: no limit."""


Portion = Annotated[float, Field(gt=0, le=1)]
"""A fraction above 0."""


@options
class Network:
    """How fast gradients go, for predictions on paper (python -m hrdc_hpc.scaling predict); changes no run."""

    gbit_per_node: PositiveFloat
    """What all adapters of a node together send in one direction, Gbit/s, by their data sheets."""
    efficiency: Portion = 0.85
    """Share of it that large all-reduces get."""
    latency_us: PositiveFloat = 10.0
    """From one node to the next inside an all-reduce, microseconds."""
    inside_gbyte_per_s: PositiveFloat = 300.0
    """What one GPU sends to others of its node in large all-reduces, GB/s in one direction."""
    inside_latency_us: PositiveFloat = 3.0
    """From one GPU of a node to the next inside an all-reduce, microseconds."""


@options
class Device:
    """One GPU, or the cores of one rank, for predictions on paper; changes no run."""

    name: str
    tflops: PositiveFloat
    """Dense peak in the run's precision by the data sheet, TFLOP/s."""
    memory_gbyte_per_s: PositiveFloat
    """Bandwidth of its memory by the data sheet, GB/s."""
    half: bool = True
    """Whether activations have 16 bits, as with bf16 and fp16."""
    tflops_share: Portion = 0.8
    """Share of the peak that large products reach: 790 of 989 TFLOP/s measured on an H200."""
    memory_share: Portion = 0.9
    """Share of the bandwidth that a copy reaches: 4.3 of 4.8 TB/s measured on an H200."""
    step_ms: NonNegativeFloat = 3.2
    """Part of a step that does not grow with its images: launches and kernels too small for the device,
    milliseconds. The default is what MLPerf's 64 H100 at 50 images lose against 8 at 400 (records/, published)."""
    noise: Fraction = 0.01
    """Standard deviation of a rank's step time, as a share of it: the slowest of all ranks sets the pace."""
    images_per_s: PositiveFloat | None = None
    """What the loaders of one node read and decode, images/s; unset: they keep up."""
    images_per_s_shared: PositiveFloat | None = None
    """What the shared file system gives all nodes together, images/s; unset: it keeps up."""


@options
class Cluster:
    """What is asked of the scheduler, and how the program is started on its nodes."""

    profile: str | None = None
    """A file with keys of this section, for one cluster; what the run's config and command line say goes before it."""

    partition: str | None = None
    nodes: PositiveInt | Annotated[str, Field(pattern=RANGE, description=ALLOWED_RANGE)] = 1
    """A range: the run starts, and starts again after a requeue, on whatever SLURM gives of it."""
    gpus_per_node: NonNegativeInt = 0
    ranks_per_node: PositiveInt | None = None
    """Processes per node; unset: one per GPU, or one without GPUs."""
    cpus_per_rank: PositiveInt = 1
    mem_gb: PositiveInt | None = None
    """Memory per node, GB; unset: the partition's default."""
    time_min: PositiveInt = 60
    """Time limit, minutes; of a range of nodes, it must fit the fewest."""
    signal_delay_s: NonNegativeInt = 90
    """Seconds before the time limit at which SLURM warns the job; 0: it does not, the run watches the clock itself."""
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    array_parallelism: PositiveInt = 16
    """Elements of an array that run at once."""
    ask_elements: PositiveInt = 10
    """A sweep of more elements is submitted only when it was confirmed."""
    ask_hours: PositiveFloat = 100.0
    """The same for a sweep that may use more GPU-hours than this (CPU-hours without GPUs) until its time limit."""
    requeue: Requeue = Requeue()
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other sbatch option, without the dashes."""
    srun: tuple[str, ...] = ()
    """Any other srun option, such as --network=...; expanded."""
    cpu_bind: str | None = None
    """srun's --cpu-bind, e.g. cores, ldoms or none; unset: the site's."""
    gpu_bind: str | None = None
    """srun's --gpu-bind, e.g. closest, single:1 or none; unset: the site's."""

    modules: tuple[str, ...] = ()
    """Modules that are loaded on the node, in this order."""
    venv: str | None = None
    """Folder of a virtual environment on the node, activated after the modules; expanded."""
    python: str | None = None
    """Interpreter on the node; expanded. Unset: the launcher's own; with venv or container, python3 in there."""
    container: Container | None = None
    environment: dict[str, str | int] = Field(default_factory=dict)
    """Variables of the ranks; expanded. They go before those of `nccl`."""
    nccl: Literal["none", "infiniband", "ethernet", "efa", "slingshot"] = "none"
    """Variables for the network between the nodes (cluster/nccl.py); none: NCCL finds out by itself."""
    network_interface: str | None = None
    """Interface over which ranks find each other, and over which they talk without a fabric, e.g. eth0 or ib."""
    scratch: str | None = None
    """Node-local folder, made on each node: TMPDIR of the ranks; expanded. Nobody but the site clears it."""
    compile_cache: str | None = None
    """Node-local folder, made on each node: compiled kernels are kept there from start to start; expanded."""
    setup: tuple[str, ...] = ()
    """Shell lines that run on the node before the job, after all of the above."""

    network: Network | None = None
    """Of the nodes, for predictions on paper."""
    device: Device | None = None
    """Of each rank, for predictions on paper."""

    def __post_init__(self) -> None:
        """Refuse a warning before the job begins, dashes in names of sbatch options, and what would end a line."""
        fewest, most = node_range(self.nodes)
        demand(
            Rule("nodes", fewest <= most, f"must go from fewer to more, such as {most}-{fewest}; got {self.nodes}"),
            Rule(
                "signal_delay_s",
                self.signal_delay_s < 60 * self.time_min,
                f"must be below time_min ({60 * self.time_min} s); got {self.signal_delay_s}",
                also="time_min",
            ),
            *self._of_text(),
            *self._of_the_node(),
        )

    def _of_text(self) -> Iterator[Rule]:
        for field in ("profile", "partition", "account", "qos", "constraint"):
            yield _one_line(field, getattr(self, field))
        for option in self.sbatch.items():
            for word in option:
                yield _one_line("sbatch", str(word))
        dashes = next((name for name in self.sbatch if name.startswith("-")), None)
        yield Rule("sbatch", dashes is None, f"write options without dashes in front; got {dashes!r}")
        for line in self.setup:
            yield Rule("setup", line.translate(_BLANK).isprintable(), f"must be printable characters; got {line!r}")
        for word in self.srun:
            yield Rule("srun", word.startswith("--"), f"write long options, such as --network=...; got {word!r}")
            yield _expanded("srun", word)
        for field in ("cpu_bind", "gpu_bind", "network_interface"):
            word = getattr(self, field)
            yield Rule(field, word is None or bool(re.fullmatch(r"[^\s'\"]+", word)), f"must be one word; got {word!r}")
        for module in self.modules:
            fits = re.fullmatch(r"[^\s'\"$`\\-][^\s'\"$`\\]*", module)
            yield Rule("modules", bool(fits), f"must be names of modules, such as cuda/13; got {module!r}")

    def _of_the_node(self) -> Iterator[Rule]:
        for field in ("venv", "python", "scratch", "compile_cache"):
            yield _expanded(field, getattr(self, field))
        for field in ("venv", "scratch", "compile_cache"):
            yield _on_the_node(field, getattr(self, field))
        for name, value in self.environment.items():
            yield Rule(
                "environment", bool(_NAME.fullmatch(name)), f"must have names of variables as keys; got {name!r}"
            )
            yield _expanded("environment", str(value))
        both = self.venv is not None and self.container is not None
        yield Rule("venv", not both, "does not go with container, which has a Python of its own", also="container")
