"""Ranks that train a network without batch norm, whose result must not depend on how many they are."""

from __future__ import annotations

from pathlib import Path

from hrdc_hpc.engine.place import Place, Stop


def train_norm_free(run: Path, place: Place, stop: Stop) -> None:
    """Take ten steps of the run's config; rank 0 leaves the weights and the losses in the run folder."""
    import torch
    from torch import nn

    from hrdc_hpc.config.load import loads
    from hrdc_hpc.engine.parts import build_parts, open_images
    from hrdc_hpc.engine.precision import pick_precision
    from hrdc_hpc.engine.processes import open_processes
    from hrdc_hpc.engine.step import TrainStep

    class NormFree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 5, stride=4)
            self.heads = nn.ModuleDict({name: nn.Linear(8, 10) for name in ("plain", "reweighted")})

        def forward(self, images):
            features = self.conv(images).relu().mean(dim=(2, 3))
            return features, {name: head(features) for name, head in self.heads.items()}

    config = loads((run / "config.yaml").read_text())
    with open_processes(place, config.compute) as processes:
        images = open_images(config, processes, local_first=place.local_rank == 0)
        parts = build_parts(config, images, processes)
        torch.manual_seed(0)
        step = TrainStep(NormFree(), parts.method, config, pick_precision(config.compute, processes.device), processes)
        step.rehearse({name: loader.blank() for name, loader in parts.loaders.items()}, {})
        losses = []
        for batch in parts.loaders["main"].batches(0, 10):
            step({"main": batch}, {}, {"lr": 0.1, "ema_weight": 0.1, **parts.method.scalars(1, 3)})
            losses.append(processes.sum(step.loss.double().reshape(1)).item())
        if processes.first:
            torch.save({"weights": step.network.state_dict(), "losses": losses}, run / "norm_free.pt")
        parts.close()
        processes.barrier()
