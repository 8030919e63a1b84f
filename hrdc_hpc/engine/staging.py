"""Copies of a packed data set on the nodes, made while the run trains. The work is in data/staging.py."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

from hrdc_hpc.config.schema import Data
from hrdc_hpc.data.packed import PackedIndex
from hrdc_hpc.data.preflight import refuse_staging
from hrdc_hpc.data.staging import Staging
from hrdc_hpc.engine.journal import Journal
from hrdc_hpc.engine.parts import Images
from hrdc_hpc.engine.place import Place, Stop

log = logging.getLogger(__name__)


def staging(data: Data, images: Images, place: Place, stop: Stop, journal: Journal) -> AbstractContextManager[object]:
    """Begin to copy both splits to this node if that is asked for (data.staging); the copying ends with the block.

    Called on every rank; those of a node share the work. ValueError, on all of them, for a data set that is not packed.
    """
    if data.staging is None:
        return nullcontext()
    refuse_staging(data)
    # with a holdout both splits lie in the same shards
    splits = {
        id(index.files): index.files for index in (images.train, images.evaluation) if isinstance(index, PackedIndex)
    }

    def write_down(progress: Mapping[str, Any]) -> None:
        try:
            journal.write("staging", 0, **progress)  # of no step: readers see the newest
        except OSError as error:  # the run's own records will meet it, too
            log.warning("staging: its progress could not be written down: %s", error)

    return closing(
        Staging(
            tuple(splits.values()),
            data.staging,
            rank=place.rank,
            world_size=place.world_size,
            local_world_size=place.local_world_size,
            told=lambda: stop.reason() is not None,
            tell=write_down,
            quiet=place.local_rank != 0,
        )
    )
