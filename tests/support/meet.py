"""One rank of two on two hosts: `python meet.py RANK FILE`; prints the sum over both and the interface used."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from hrdc_hpc.config.schema import Compute
from hrdc_hpc.engine.place import Place
from hrdc_hpc.engine.processes import open_processes

if __name__ == "__main__":
    rank = int(sys.argv[1])
    place = Place(rank, 2, 0, 1, Path(sys.argv[2]), {"cpus_per_rank": 1})
    with open_processes(place, Compute(device="cpu", threads=1)) as processes:
        total = processes.sum(torch.tensor([1 + rank])).item()
        print(total, os.environ["GLOO_SOCKET_IFNAME"])
