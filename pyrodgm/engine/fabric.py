"""Devices, precision and processes, by Lightning Fabric."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

__all__ = ["make_fabric"]


def make_fabric(device: str, precision: Any, strategy: Any, devices: int) -> Any:
    """A Fabric for the arguments of :func:`pyrodgm.fit`.

    Raises: ValueError for a device that is not there, or several processes on one device.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f'expected device "auto", "cpu", "cuda" or "cuda:INDEX", got {device!r}')
    if index and devices != 1:
        raise ValueError(f'expected devices=1 with device={device!r}, got {devices}; use device="cuda"')
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f'device {device!r} is not there on this machine; use "auto" or "cpu"')
    if kind == "auto":  # not mps, which has no float64
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if strategy in ("ddp", "ddp_spawn"):
        new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        own_buffers: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        strategy = DDPStrategy(
            start_method="popen" if strategy == "ddp" else "spawn",
            find_unused_parameters=True,  # one player's loss leaves the others' parameters out
            **own_buffers,  # each process has chains of its own
        )
    return Fabric(
        accelerator=kind,
        devices=[int(index)] if index else devices,
        precision=precision,
        strategy=strategy,
    )
