"""The cache of decoded training images on each node, filled before the first step. The work is in data/filling.py."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from hrdc_hpc.config.schema import Data
from hrdc_hpc.data.decoded import cache_folder, check_room, decoded_index
from hrdc_hpc.data.index import ImageIndex
from hrdc_hpc.data.node_folder import hold, remove_unused
from hrdc_hpc.data.preflight import refuse_decoded_cache
from hrdc_hpc.engine.parts import Images
from hrdc_hpc.engine.place import Place, Stop

log = logging.getLogger(__name__)


@contextmanager
def decoded(
    data: Data, images: Images, place: Place, stop: Stop, cores: int, together: Callable[[], None]
) -> Iterator[Images]:
    """Have the training images in the node's cache if that is asked for (data.decoded_cache); yields what to train on.

    Called on every rank; those of a node fill it together. ValueError where it does not fit or the images are no
    encoded ones, DataError for images that cannot be decoded; Stopped, raised by `together`, if told to stop meanwhile.
    """
    cache, source = data.decoded_cache, images.train
    if cache is None:
        yield images
        return
    if not isinstance(source, ImageIndex):
        refuse_decoded_cache(data, data.dataset.name)
        raise AssertionError
    from nvidia.dali import __version__ as dali

    from hrdc_hpc.data.filling import Filler  # DALI, which other runs may not need

    folder = cache_folder(cache, source, f"dali {dali}")
    while (held := hold(folder)) is None:
        time.sleep(0.1)  # it is being removed
    try:
        index = decoded_index(source, cache.side, folder)
        check_room(cache, index, folder)
        began = time.monotonic()
        filler = Filler(
            index,
            cores=cores,
            skip=data.on_bad_image == "skip",
            rank=place.local_rank,
            ranks=place.local_world_size,
            told=lambda: stop.reason() is not None,
        )
        filler.fill()
        together()
        if place.local_rank == 0:
            log.info(
                "decoded cache: %d images, %.2f GB, in %s after %.1f s", len(index), index.bytes_N.sum() / 1e9, folder,
                time.monotonic() - began,
            )  # fmt: skip
        yield replace(images, train=index)
    finally:
        os.close(held)
        if cache.where == "memory":
            remove_unused(folder)
