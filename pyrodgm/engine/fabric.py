"""Devices, precision and processes, by Lightning Fabric."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pyrodgm.core import GenerativeModel

__all__ = ["SPAWNED", "check_precision", "make_fabric", "unfuse"]

SPAWNED = ("ddp_spawn", "ddp_fork", "ddp_notebook")  # strategies whose processes are made by the one that asks
_STARTS: dict[str, Any] = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_fork": "fork", "ddp_notebook": "fork"}
_WHOLE = ("None", "32", "32-true", "64", "64-true")  # precisions that round nothing


def check_precision(model: GenerativeModel, precision: Any) -> None:
    """Raise ValueError for a precision that rounds all of a model, or one that it does not bear in a part."""
    if str(precision).endswith("16-true"):
        raise ValueError(
            f'expected precision="32-true", "64-true" or "bf16-mixed", got {precision!r}, which would round the '
            "log-densities; mixed precision rounds in networks alone"
        )
    coarse = [type(m).__name__ for m in model.modules() if not getattr(m, "mixed_precision", True)]
    if coarse and str(precision) not in _WHOLE:
        raise ValueError(
            f'expected precision="32-true" or "64-true" for {coarse[0]}, whose units are drawn by probabilities that '
            f"{precision!r} would round"
        )


def unfuse(optimizer: Optimizer) -> None:
    """Let an optimiser step by plain kernels: a fused one undoes the gradients' scale itself, after their clipping."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["fused"] = None


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
    if strategy == "auto" and devices != 1:
        strategy = "ddp_fork" if hasattr(sys, "ps1") else "ddp"  # at a prompt there is no script to start again
    if strategy in _STARTS:
        new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
        own_buffers: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        strategy = DDPStrategy(
            start_method=_STARTS[strategy],
            find_unused_parameters=True,  # one player's loss leaves the others' parameters out
            **own_buffers,  # each process has chains of its own
        )
    return Fabric(
        accelerator=kind,
        devices=[int(index)] if index else devices,
        precision=precision,
        strategy=strategy,
    )
