"""Energy of this rank's GPU, as NVIDIA's management library counts it; nvidia-ml-py is optional."""

from __future__ import annotations

from typing import Any

import torch


class EnergyCounter:
    """Joules that one GPU has used, whoever used it; tells why where nothing can be read."""

    def __init__(self, device: torch.device) -> None:
        """Look for the GPU's counter; raises nothing."""
        self.missing: str | None = None
        """Why energy is not measured; None: it is."""
        self.driver: str | None = None
        """Version of the driver, where it is known."""
        self._nvml: Any = None
        self._gpu: Any = None
        if device.type != "cuda":
            self.missing = "energy was not measured: the ranks have no GPUs"
            return
        try:
            import pynvml
        except ImportError:
            self.missing = "energy was not measured: nvidia-ml-py is not installed"
            return
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self.driver = str(pynvml.nvmlSystemGetDriverVersion())
            # by its name, not its number: ranks may be shown some of a node's GPUs only
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)
        except pynvml.NVMLError as error:  # a part of a GPU (MIG), or one that does not count
            self.missing = f"energy was not measured: NVML says: {error}"

    def joules(self) -> float | None:
        """Return the counter, which only its differences mean something; None where it cannot be read."""
        if self.missing is not None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)) / 1000  # it counts mJ
        except self._nvml.NVMLError as error:
            self.missing = f"energy was not measured to the end: NVML says: {error}"
            return None
