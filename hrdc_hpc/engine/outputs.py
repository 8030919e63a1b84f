"""Collects what the network says of every evaluation image, for sweeps of fusion weights and other post-hoc studies.

Axis legend: N images, C classes, D features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hrdc_hpc.engine.evaluation import Outputs


class OutputFiles:
    """Memory-mapped .npy files in a folder: features [N, D], logits of every head [N, C], labels [N], valid [N].

    Rows are in the order of the image index; a row whose image could not be read has valid = 0 and zeros elsewhere.
    """

    def __init__(self, folder: Path, images: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._images = images
        self._files: dict[str, np.memmap] = {}

    def _rows(self, name: str, like: np.ndarray) -> np.memmap:
        if name not in self._files:
            shape = (self._images, *like.shape[1:])
            self._files[name] = np.lib.format.open_memmap(self._folder / f"{name}.npy", "w+", like.dtype, shape)
        return self._files[name]

    def see(self, outputs: Outputs) -> None:
        """Write one batch's rows."""
        valid_B = outputs.batch.valid_B.cpu().numpy() > 0
        rows_B = outputs.batch.positions_B[valid_B]
        values = {
            "labels": outputs.batch.labels_B,
            "features": outputs.features_BD,
            **{f"logits_{head}": logits_BC for head, logits_BC in outputs.logits.items()},
        }
        for name, value in values.items():
            array = value.cpu().numpy()
            self._rows(name, array)[rows_B] = array[valid_B]
        self._rows("valid", valid_B)[rows_B] = True

    def close(self) -> list[Path]:
        """Flush and return the files."""
        for file in self._files.values():
            file.flush()
        return [self._folder / f"{name}.npy" for name in self._files]
