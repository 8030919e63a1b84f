"""What a run keeps on its nodes' own disks and memory: copies of a packed data set, decoded images. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from hrdc_hpc.config.types import OPERATIONAL, NonNegativeFloat, PositiveFloat, PositiveInt, options


@options
class Staging:
    """A copy of a packed data set on each node's own disk, made while training reads the shared one already.

    Each shard is read from the node as soon as it is there; what is read is the same. See docs/data.md.
    """

    to: str | None = None
    """Folder on the node; may hold $NAME, ${NAME} and ${NAME:-default}. Unset: $TMPDIR, which cluster.scratch sets."""
    keep_free_gb: NonNegativeFloat = 10.0
    """Nothing is copied where less than this would stay free on that disk, GB (1e9 bytes)."""
    mb_per_s: PositiveFloat | None = None
    """Most that a node reads for it, MB (1e6 bytes) per second; unset: what the disks give."""
    verify: bool = True
    """Compare the checksum of a copy that another run left before it is used, unless that was done within a day. Those
    that are being made are always compared."""


@options
class DecodedCache:
    """The training images, decoded once a node and kept as pixels with a smaller shorter side. See docs/data.md.

    Crops are cut out of those: a small crop is less sharp than one out of the original. Evaluation decodes as ever.
    """

    side: PositiveInt = 256
    """Shorter side of the images that are kept, pixels; smaller images are kept as they are."""
    where: Annotated[Literal["memory", "scratch"], OPERATIONAL] = "memory"
    """'memory': /dev/shm, as long as a run needs it; 'scratch': a folder on the node's disk, which stays."""
    to: Annotated[str | None, OPERATIONAL] = None
    """where scratch: the folder; may hold $NAME, ${NAME} and ${NAME:-default}. Unset: $TMPDIR, which cluster.scratch
    sets."""
    max_gb: Annotated[PositiveFloat, OPERATIONAL] | None = None
    """Most that it may take on a node, GB (1e9 bytes), or the run is refused; unset: what is free."""
    keep_free_gb: Annotated[NonNegativeFloat, OPERATIONAL] = 4.0
    """Memory or disk that must stay free on the node, GB."""
