"""Draws written to a folder as they are made, and a run that goes on from them."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pyrodgm.core import Energy
from pyrodgm.engine.unconstrained import Moderate
from pyrodgm.kernels.base import Kernel, State
from pyrodgm.seeding import random_state
from pyrodgm.traces import is_deterministic, sample_sites

__all__ = ["DrawStore", "StoredDraws", "identity"]

_STATE, _DRAWS = "state.pt", "draws.zarr"
_SITE = "site"  # the attribute of an array that has the name of its site
_COORDINATES = ("chain", "draw")


@torch.no_grad()
def identity(program: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What tells one posterior from another: the latent sites with their shapes, and a digest of what is given.

    Given are the arrays, numbers and texts among the arguments, the observed values, and the parameters of a module.
    """
    given: list[Any] = [args, kwargs]
    if isinstance(program, nn.Module):
        given.append(dict(program.state_dict()))
    latent = {"x": list(program.event_shape)} if isinstance(program, Energy) else {}
    if not isinstance(program, Energy):
        devices = [v.device for v in tree_leaves(given) if isinstance(v, Tensor)] or [torch.device("cpu")]
        # a subsampled plate reads the same rows every time
        with random_state(devices[0], 0), poutine.block(), Moderate(args, kwargs):
            sites = sample_sites(poutine.trace(program).get_trace(*args, **kwargs))
        given.append({k: s["value"] for k, s in sites.items() if s["is_observed"] and not is_deterministic(s)})
        latent = {k: list(s["value"].shape) for k, s in sites.items() if not s["is_observed"]}
    return {"sites": latent, "data": digest(given)}


def described(kernel: Kernel) -> list[Any]:
    """What tells one kernel from another before it is tuned: its class and metric, its numbers, the kernels inside."""
    inner = {k: described(v) for k, v in vars(kernel).items() if isinstance(v, Kernel)}
    metric = getattr(kernel, "metric", None)
    return [type(kernel).__name__, type(metric).__name__, _settings(kernel), inner]


def digest(values: Any) -> str:
    """Of the arrays, numbers and texts in nested containers."""
    found = hashlib.sha256()
    for value in tree_leaves(values):
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            value = torch.as_tensor(np.require(value, requirements=("C", "W")))
        if isinstance(value, Tensor):
            found.update(f"{value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, (bool, int, float, str)):
            found.update(repr(value).encode())
    return found.hexdigest()[:16]


def _key(name: str) -> str:
    """The name of a site's array: a "/" (``pyro.contrib.autoname.scope``) would make it a group."""
    return name.replace("/", ".")


def _zarr() -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError("store= needs zarr: pip install 'pyrodgm[store]'") from error
    return zarr


class StoredDraws(Mapping[str, Tensor]):
    """The arrays of one group of a store by the names of their sites, each read from disk when it is asked for.

    Args:
        group: of zarr arrays (chains, draws, *shape).
        draws: how many to read.
    """

    def __init__(self, group: Any, draws: int) -> None:
        self._group, self._draws = group, draws

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._group[_key(name)][:, : self._draws])

    def __iter__(self) -> Iterator[str]:
        keys = [k for k in self._group.array_keys() if k not in _COORDINATES]
        return iter(sorted(self._group[k].attrs.get(_SITE, k) for k in keys))

    def __len__(self) -> int:
        return len(list(iter(self)))


class DrawStore:
    """A folder with ``draws.zarr`` in arviz's layout (groups "posterior", "sample_stats") and the chains' state.

    A block of draws counts once the state that follows it is written, which happens in one rename: a run
    killed at any moment goes on from its last whole block, with the draws it would have made.
    ``xarray.open_datatree(folder / "draws.zarr", engine="zarr", consolidated=False)`` reads the draws.

    Args:
        folder: made if it is not there.
        fingerprint: what identifies the run.
    A "/" in a site's name is a "." in its array's.

    Raises: ValueError from ``resume`` if the folder holds another run, or one of another kind of device, and from
        ``append`` for sites whose arrays would have one name; ImportError without zarr.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any]) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self.root = _zarr().open_group(folder / _DRAWS, mode="a", zarr_format=2)
        self.draws = 0

    def resume(self, kernel: Kernel, potential: Any, generator: torch.Generator) -> tuple[State, Kernel, int] | None:
        """State, tuned kernel and number of draws of the run in the folder, its noise put into ``generator``.

        Returns: None for a new folder.
        """
        path = self.folder / _STATE
        if not path.exists():
            return None
        saved = torch.load(path, weights_only=True)
        if saved["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"expected {self.folder} to hold draws of this run, {self.fingerprint}, got {saved['fingerprint']}; "
                "choose another folder"
            )
        device = generator.device
        if saved["device"] != device.type:
            raise ValueError(
                f"expected {self.folder} to go on on the {saved['device']}, whose noise it is from, got {device.type}; "
                f"pass device={saved['device']!r}, or choose another folder"
            )
        positions = saved["positions"].to(device)
        tuned = _with_settings(kernel, saved["kernel"], positions)
        fresh = tuned.init(potential, positions)  # its potential is what the kernel makes of the program's
        self._check_density(_energies(fresh), saved["density"])
        self.draws = saved["draws"]
        generator.set_state(saved["generator"])
        energy, gradient = (None if t is None else t.to(device) for t in saved["energy"])
        memory = tuple(t.to(device) for t in saved["memory"])
        return State(positions, fresh.potential, energy, gradient, saved["moves"], memory), tuned, self.draws

    def _check_density(self, now: Tensor | None, energy: Tensor | None) -> None:
        """A number inside the program may have changed, which no fingerprint sees, but the energies of the chains."""
        if now is None or energy is None:
            return
        now = now.cpu()
        # of rounding that other code or another device does otherwise, relative to the largest, since energies cancel
        allowed = torch.finfo(energy.dtype).eps ** 0.5 * (1 + energy.abs().max())
        if not torch.allclose(now, energy, rtol=0, atol=allowed.item(), equal_nan=True):
            gap = (now - energy).abs().max().item()
            raise ValueError(
                f"expected {self.folder} to hold draws from this density, got energies of its chains that differ by up "
                f"to {gap:.3g} from those now; the program has changed: choose another folder"
            )

    def append(
        self,
        samples: Mapping[str, Tensor],
        stats: Mapping[str, Tensor],
        state: State,
        kernel: Kernel,
        generator: torch.Generator,
    ) -> None:
        """Write a block of draws, (chains, block, *shape) each, then the state that follows it."""
        block = next(iter(samples.values())).shape[1]
        end = self.draws + block
        for name, values in (("posterior", samples), ("sample_stats", stats)):
            group = self.root.require_group(name)
            for key, value in values.items():
                self._write(group, key, value, end)
            self._coordinates(group, self.fingerprint["chains"], end)
        saved = {
            "fingerprint": self.fingerprint,
            "draws": end,
            "device": generator.device.type,
            "positions": state.positions.cpu(),
            "energy": [None if t is None else t.cpu() for t in (state.energy, state.gradient)],
            "density": None if (density := _energies(state)) is None else density.cpu(),
            "moves": state.moves,
            "memory": [t.cpu() for t in state.memory],
            "kernel": _settings(kernel),
            "generator": generator.get_state(),
        }
        half = self.folder / f"{_STATE}.part"
        torch.save(saved, half)
        os.replace(half, self.folder / _STATE)
        self.draws = end

    def _write(self, group: Any, name: str, value: Tensor, end: int) -> None:
        key = _key(name)
        if key in _COORDINATES:
            raise ValueError(
                f"expected sites of other names than the coordinates {_COORDINATES}, got {name!r}; rename it"
            )
        array = group.get(key)
        if array is not None and array.attrs.get(_SITE, name) != name:
            raise ValueError(
                f"expected sites whose names differ by more than a '/' for a '.', got {name!r} and "
                f"{array.attrs[_SITE]!r}; rename one"
            )
        if array is None:
            array = group.create_array(
                key,
                shape=(value.shape[0], 0, *value.shape[2:]),
                chunks=tuple(max(1, size) for size in value.shape),
                dtype=value.numpy().dtype,
            )
            array.attrs["_ARRAY_DIMENSIONS"] = ["chain", "draw", *(f"{key}_dim_{i}" for i in range(value.dim() - 2))]
            array.attrs[_SITE] = name
        array.resize((value.shape[0], end, *value.shape[2:]))
        array[:, self.draws : end] = value.numpy()

    def _coordinates(self, group: Any, chains: int, draws: int) -> None:
        for name, size in zip(_COORDINATES, (chains, draws), strict=True):
            array = group.get(name)
            if array is None:
                array = group.create_array(name, shape=(0,), chunks=(max(size, 1000),), dtype="int64")
                array.attrs["_ARRAY_DIMENSIONS"] = [name]
            array.resize((size,))
            array[:] = torch.arange(size).numpy()

    def read(self, draws: int) -> tuple[StoredDraws, StoredDraws]:
        """The posterior and the statistics, of as many draws at most."""
        draws = min(draws, self.draws)
        return StoredDraws(self.root["posterior"], draws), StoredDraws(self.root["sample_stats"], draws)


def _energies(state: State) -> Tensor | None:
    """Of the chains; for kernels that keep none what the potential says, if it is one of a program."""
    eager = getattr(state.potential, "eager", None)
    return state.energy if state.energy is not None or eager is None else eager(state.positions)[0]


def _settings(kernel: Kernel) -> dict[str, Any]:
    """The numbers of a kernel, its mass matrix, and those of the kernels inside it."""
    found = {k: v for k, v in vars(kernel).items() if isinstance(v, (int, float, bool, Tensor))}
    inner = {k: _settings(v) for k, v in vars(kernel).items() if isinstance(v, Kernel)}
    metric = getattr(kernel, "metric", None)
    mass = None if metric is None or metric.inverse_mass is None else metric.inverse_mass.cpu()
    return {"numbers": found, "inverse_mass": mass, "inner": inner}


def _with_settings(kernel: Kernel, saved: dict[str, Any], like: Tensor) -> Kernel:
    tuned: Any = copy.copy(kernel)
    vars(tuned).update(saved["numbers"])
    vars(tuned).update({k: _with_settings(getattr(kernel, k), v, like) for k, v in saved["inner"].items()})
    if saved["inverse_mass"] is not None:
        tuned.metric = tuned.metric.fitted(saved["inverse_mass"], like)
    return tuned
