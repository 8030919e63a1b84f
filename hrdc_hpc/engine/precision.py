"""Number formats under torch.amp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hrdc_hpc.config.schema import Compute


@dataclass(frozen=True)
class Precision:
    """What autocast computes matrix products and convolutions in; parameters and losses stay float32."""

    name: str
    dtype: torch.dtype
    device_type: str

    def autocast(self) -> torch.autocast:
        """Context in which the network runs."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def scaler(self) -> torch.amp.GradScaler | None:
        """Return a loss scaler for fp16, whose gradients would underflow; None for the others."""
        return torch.amp.GradScaler(self.device_type) if self.dtype == torch.float16 else None


def has_matrix_units() -> bool:
    """Whether the CPU has hardware of its own for products of bfloat16 matrices (AMX); without, bf16 may be slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0]
    except OSError:  # not Linux
        return False
    return "amx_bf16" in flags.split()


def pick_precision(compute: Compute, device: torch.device) -> Precision:
    """Resolve 'auto': bf16 on a GPU or CPU with matrix units for it, else fp16 on a GPU and fp32 on a CPU."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    name: str = compute.precision
    if name == "auto":
        name = "bf16" if has_matrix_units() else "fp32"
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return Precision(name, dtypes[name], device.type)
