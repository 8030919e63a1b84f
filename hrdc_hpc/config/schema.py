"""Every field of a run, with its default, unit and meaning. Torch-free.

Fields are semantic (they change what is learnt: a run cannot be resumed under other values) unless they are marked
OPERATIONAL (paths, nodes, logging, retention: free to change between attempts). A marked section is operational whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from hrdc_hpc.config.cluster import Cluster
from hrdc_hpc.config.node_local import DecodedCache, Staging
from hrdc_hpc.config.types import (
    OPERATIONAL,
    Component,
    Fraction,
    Kind,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Rule,
    demand,
    options,
)

Share = Annotated[float, Field(gt=0, le=1)]
"""A fraction above 0."""


@options
class Levels:
    """How classes are split into three groups, from frequent to rare."""

    by: Literal["images", "rank"] = "images"
    """'images': thresholds on the training images of a class; 'rank': fixed numbers of classes, most frequent first."""
    first_over: NonNegativeInt = 100
    """by images: a class with more than this many images is in the first group (head, many-shot)."""
    last_under: NonNegativeInt = 20
    """by images: a class with fewer than this many images is in the last group (tail, few-shot)."""
    ranks: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] | None = None
    """by rank: classes in each group; must add up to the number of classes."""

    def __post_init__(self) -> None:
        """Refuse groups that overlap, and a setting of the kind that is not in use."""
        demand(
            Rule(
                "last_under",
                self.by == "rank" or self.last_under <= self.first_over + 1,
                f"must be at most first_over + 1 ({self.first_over + 1}), or a class falls into two groups;"
                f" got {self.last_under}",
                also="first_over",
            ),
            Rule(
                "ranks",
                (self.by == "rank") == (self.ranks is not None),
                "is needed with by: rank, such as [3, 4, 3]"
                if self.ranks is None
                else "goes with by: rank; got by: images",
                also="by",
            ),
        )


@options
class Loader:
    """How images are read; changes speed, never what is read."""

    threads: PositiveInt | None = None
    """Decoding threads per rank; unset: the cores that this rank was given."""
    prefetch: PositiveInt | None = None
    """Batches decoded ahead; unset: two runs of the decoder, each of at least 64 images and 8 for each thread."""
    look_ahead: NonNegativeInt = 512
    """Images whose bytes the system is told to read before their turn, per rank; packed data sets only. 0: none."""
    decoder: Literal["auto", "cpu", "gpu"] = "auto"
    """Where JPEGs are decoded; auto: on the GPU if the rank has one."""
    hardware: Fraction = 1.0
    """Share of a batch's JPEGs that a GPU decodes with its JPEG engines, if it has them. Between 0 and 1 it depends on
    the batch which of two decoders an image meets, whose pixels differ slightly: not with compute.deterministic."""
    verify: bool = False
    """Compare each image that is read with its checksum; only packed data sets (hrdc_hpc.pack) have them."""


@options
class Holdout:
    """A part of the training images that is kept out of training and evaluated instead of the test split.

    Whatever is chosen by results (gamma, fusion weights, the best epoch) is chosen there, never on the test split; then
    a run without holdout trains on all images. Each class gives the same share of its images, at least one where it has
    two; which ones depends on `seed` alone, so runs of different seeds and settings are compared on the same images.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of each class's training images that is held out, rounded down."""
    seed: NonNegativeInt = 0
    """Decides which images."""


@options
class ColourJitter:
    """Training images are made brighter or darker, more or less contrasty and saturated, at random.

    A strength s means a factor between max(0, 1 - s) and 1 + s for each image; 0 leaves that property as it is.
    """

    brightness: NonNegativeFloat = 0.4
    contrast: NonNegativeFloat = 0.4
    saturation: NonNegativeFloat = 0.4


def _ordered(field: str, low_high: tuple[float, float]) -> Rule:
    low, high = low_high
    return Rule(field, low <= high, f"must go from low to high; got [{low}, {high}]")


@options
class Data:
    """Which images, in what order, and how they are cropped."""

    dataset: Annotated[Component, Kind("hrdc_hpc.data.datasets")]
    sampler: Annotated[Component, Kind("hrdc_hpc.data.samplers")] = Component("uniform")
    levels: Levels = Levels()
    """Head, medium and tail classes of the method (hierarchical rebalancing)."""
    shots: Levels = Levels()
    """Many-, medium- and few-shot classes of the report; never changes with the method."""
    image_size: PositiveInt = 224
    """Side of the square that the network sees, pixels."""
    crop: Literal["resized", "padded"] = "resized"
    """Training crop. 'resized': a random part of the image, resized (needs the size of each image only);
    'padded': a square of image_size out of the image with a black border of crop_padding, as on CIFAR."""
    crop_padding: NonNegativeInt = 4
    """crop padded: width of the border, pixels."""
    crop_scale: tuple[Share, Share] = (0.08, 1.0)
    """Random resized crop: range of the crop's share of the image's area."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """Random resized crop: range of width / height."""
    flip: bool = True
    """Mirror every second training image, at random."""
    colour_jitter: ColourJitter | None = None
    """Strengths of random changes of colour in training; unset: none."""
    eval_resize: PositiveInt = 256
    """Evaluation: shorter side before the centre crop of image_size, pixels."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Per-channel mean that is subtracted, on the scale of 0 to 1 (RGB)."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation that is divided by (RGB)."""
    holdout: Holdout | None = None
    """Part of the training images to choose settings on; unset: all are trained on, and the test split is evaluated."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """An image that cannot be decoded: stop the run and name it, or give it weight 0 and count it."""
    loader: Annotated[Loader, OPERATIONAL] = Loader()
    staging: Annotated[Staging, OPERATIONAL] | None = None
    """Copy a packed data set to each node's own disk; unset: it is read where it lies."""
    decoded_cache: DecodedCache | None = None
    """Decode the training images once and cut crops out of the smaller pixels that were kept; unset: they are decoded
    every time."""

    def __post_init__(self) -> None:
        """Refuse ranges that are upside down, a centre crop that does not fit and crops of nothing but border."""
        demand(
            _ordered("crop_scale", self.crop_scale),
            _ordered("crop_ratio", self.crop_ratio),
            Rule(
                "eval_resize",
                self.eval_resize >= self.image_size,
                f"must be at least image_size ({self.image_size}), which is cut out of it; got {self.eval_resize}",
                also="image_size",
            ),
            Rule(
                "crop_padding",
                self.crop == "resized" or self.crop_padding < self.image_size,
                f"must be below image_size ({self.image_size}), or crops may show nothing but the border;"
                f" got {self.crop_padding}",
                also="image_size",
            ),
            *self._of_cache(),
        )

    def _of_cache(self) -> Iterator[Rule]:
        cache = self.decoded_cache
        if cache is not None:
            large = f"must be at least image_size ({self.image_size}), or every crop is enlarged; got {cache.side}"
            yield Rule("decoded_cache.side", cache.side >= self.image_size, large, also="image_size")
            alone = self.staging is None
            yield Rule("staging", alone, "does not go with decoded_cache, which reads each image once", "decoded_cache")


@options
class Model:
    """The network without its method: a backbone and what its heads have in common."""

    backbone: Annotated[Component, Kind("hrdc_hpc.models.backbones")]
    head: Literal["linear", "cosine"] = "linear"
    """Kind of the classifiers. 'cosine': logits are cosine_scale times the cosine of feature and class weight."""
    bias: bool = True
    """Whether linear heads have a bias; cosine heads have none."""
    cosine_scale: PositiveFloat = 16.0
    """head cosine: the largest possible logit."""
    batch_norm: Literal["per_rank", "sync", "ghost"] = "per_rank"
    """Images that batch norm takes its statistics over. 'per_rank': each rank's share of the batch, so results depend
    on the number of ranks; 'sync': the batch over all ranks; 'ghost': groups of ghost_size consecutive images of the
    global batch, the same groups on any number of ranks (torch.compile then takes several times as long to begin)."""
    ghost_size: PositiveInt = 32
    """batch_norm ghost: images per group; must divide each rank's share of the batch."""


@options
class Optim:
    """The optimisation: batch, schedule, SGD."""

    epochs: PositiveInt
    global_batch: PositiveInt
    """Images per optimizer step over all ranks; the same on any number of ranks."""
    lr: PositiveFloat = 0.1
    """Peak learning rate, at `lr_batch` images per step."""
    lr_batch: PositiveInt | None = None
    """The rate is multiplied by global_batch / lr_batch; unset: taken as it is."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 1e-4
    weight_decay_on: Literal["all", "weights"] = "all"
    """What decays: all parameters, as in the published recipes, or all but biases and batch-norm parameters."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient over all parameters; a longer one is scaled down to it. Unset: not clipped."""
    schedule: Annotated[Component, Kind("hrdc_hpc.engine.schedules")] = Component("cosine")
    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs of linear warm-up, in front of and part of the schedule."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of the exponential moving average of the weights; unset: none is kept."""
    accumulation: Annotated[PositiveInt, OPERATIONAL] = 1
    """Forward-backward passes per step and rank; the rank's share of the batch is cut into as many pieces."""

    def __post_init__(self) -> None:
        """Refuse a warm-up without an end, an empty piece of a batch and what SGD refuses."""
        demand(
            Rule(
                "warmup_epochs",
                self.warmup_epochs < self.epochs,
                f"must be below epochs ({self.epochs}), which it is part of; got {self.warmup_epochs}",
                also="epochs",
            ),
            Rule(
                "accumulation",
                self.accumulation <= self.global_batch,
                f"must be at most global_batch ({self.global_batch}), or pieces are empty; got {self.accumulation}",
                also="global_batch",
            ),
            Rule("nesterov", not self.nesterov or self.momentum > 0, "needs a momentum above 0", also="momentum"),
        )


@options
class Compute:
    """Number formats and kernels."""

    device: Annotated[Literal["auto", "cpu", "cuda"], OPERATIONAL] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of matrix products under torch.amp; auto: bf16 on a GPU or CPU with matrix units for it, else fp16 on a GPU and
    fp32 on a CPU."""
    channels_last: bool = True
    deterministic: bool = False
    """Only deterministic kernels: bit-identical repeats on a GPU, at a cost in speed."""
    compile: bool | None = None
    """torch.compile of network and losses; unset: on a GPU, if it works there, and not on a CPU."""
    cuda_graph: bool | None = None
    """Replay augmentation, forward, losses, backward and update as one captured CUDA graph; unset: on a single GPU with
    a data set that lies in its memory, if it works there. Ignored on a CPU."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Number format in which gradients are added up over the ranks; bf16 halves the traffic."""
    peak_tflops: Annotated[PositiveFloat, OPERATIONAL] | None = None
    """Peak of one device in the run's precision, for the model FLOPs utilisation; unset: the data sheet's, if known."""
    threads: Annotated[PositiveInt, OPERATIONAL] | None = None
    """CPU threads of torch per rank; unset: the cores that this rank was given."""


@options
class Checkpoint:
    """When to save, and how much to keep."""

    every_steps: PositiveInt = 500
    keep_last: PositiveInt = 3
    keep_best: bool = True
    """Keep the checkpoint of the best evaluation (mean accuracy of the classes) beside the last ones; only with
    data.holdout is there a best one."""
    asynchronous: bool = True
    """Write in a background thread from a copy; a save is as durable either way."""
    accept_changes: bool = False
    """Resume although semantic settings or the data set differ from the checkpoint's."""


@options
class Eval:
    """Evaluation while training; the last epoch is always evaluated."""

    every_epochs: PositiveInt = 1
    batch_size: PositiveInt = 256
    """Images per forward pass and rank."""


@options
class Log:
    """What is written while training."""

    every_steps: PositiveInt = 10
    tensorboard: bool = True
    profile_steps: tuple[NonNegativeInt, NonNegativeInt] | None = None
    """Steps [a, b), counted from 0, whose kernels are traced into the run folder's profile/; unset: none."""

    def __post_init__(self) -> None:
        """Refuse a window without a step."""
        a, b = self.profile_steps or (0, 1)
        demand(Rule("profile_steps", a < b, f"must be two steps a < b; got [{a}, {b}]"))


@options
class Guard:
    """Against hanging ranks, bad nodes and values that are not finite."""

    watchdog: bool = True
    """Leave, with the stacks of all threads in logs/, when a rank gets nowhere for too long."""
    watchdog_factor: Annotated[float, Field(ge=2)] = 20.0
    """How many times the longest of the last steps a step, or a batch of an evaluation, may take."""
    watchdog_min_s: PositiveFloat = 300.0
    """But at least so many seconds."""
    watchdog_start_s: PositiveFloat = 3600.0
    """Seconds for each part of the start (data, compiling), and for a step that may have to wait for a save."""
    health_check: bool = True
    """Try device, network, run folder and local disk of every rank before the first step."""
    nonfinite_windows: NonNegativeInt = 5
    """How often steps may be skipped for good because their gradients were not finite when done again either."""


@options
class Measure:
    """A short run that measures training steps instead of training (python -m hrdc_hpc.scaling).

    Windows of steps as in training and of variants (without adding gradients up, on resident images) take turns.
    """

    images: Literal["real", "resident"] = "real"
    """'resident': made-up images on the device instead of the data set, of which only the class counts are read."""
    rounds: PositiveInt = 3
    """Turns of each variant."""
    steps: PositiveInt = 30
    """Longest window, in timed steps."""
    window_s: PositiveFloat = 20.0
    """A window of slow steps is cut to about so many seconds, but not below 5 steps."""
    warm_up: PositiveInt = 5
    """Steps at the start of each window that are not timed."""
    repeat: PositiveInt = 1
    """Which repeat of the same measurement it is; changes nothing."""


_RUN_NAME = Field(
    pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    max_length=200,
    description="a name of letters, digits, '.', '_' and '-' that begins with a letter or digit",
)


@options
class RunConfig:
    """One training run."""

    name: Annotated[str, OPERATIONAL, _RUN_NAME]
    """The run's folder below out_dir; letters, digits, '.', '_', '-'."""
    out_dir: Annotated[Path, OPERATIONAL] = Path("runs")
    seed: NonNegativeInt = 0
    data: Data
    model: Model
    method: Annotated[Component, Kind("hrdc_hpc.methods")]
    optim: Optim
    compute: Compute = Compute()
    checkpoint: Annotated[Checkpoint, OPERATIONAL] = Checkpoint()
    eval: Annotated[Eval, OPERATIONAL] = Eval()
    log: Annotated[Log, OPERATIONAL] = Log()
    guard: Annotated[Guard, OPERATIONAL] = Guard()
    cluster: Annotated[Cluster, OPERATIONAL] = Cluster()
    measure: Annotated[Measure, OPERATIONAL] | None = None
    """Set by scaling studies: measure steps instead of training."""

    def __post_init__(self) -> None:
        """Refuse a share of hardware decoding that is not exact where exactness is asked for."""
        hardware = self.data.loader.hardware
        demand(
            Rule(
                "data.loader.hardware",
                hardware in (0, 1) or not self.compute.deterministic,
                f"must be 0 or 1 with compute.deterministic: true, or pixels depend on the batch; got {hardware}",
                also="compute.deterministic",
            )
        )
