"""The energy of one point as the energy of many chains: vmap, one traced graph, compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from pyrodgm.engine.surroundings import validation

__all__ = ["BatchedEnergy"]

_REASON = 300  # characters of an error that a warning repeats


class BatchedEnergy:
    """An energy over chains, with its gradient in one pass.

    The function is traced once for the shape of the chains; where that fails, it runs as it is, with one warning
    that names the reason.

    Args:
        energy: (*event) -> (), or, with ``batched``, (chains, *event) -> (chains,).
        compile: compile the traced graph; else it runs operation by operation.
        batched: whether ``energy`` takes all the chains at once.
    Example:
        >>> energy = BatchedEnergy(lambda x: x.square().sum() / 2, compile=False)
        >>> energy.energy_and_gradient(torch.ones(3, 2))[0]
        tensor([1., 1., 1.])
    """

    def __init__(self, energy: Callable[[Tensor], Tensor], compile: bool = True, batched: bool = False) -> None:
        self.compile = compile
        self._energy = energy if batched else torch.func.vmap(_alone(energy))
        self._both = _summed(energy) if batched else torch.func.vmap(torch.func.grad_and_value(energy))
        self._graphs: dict[Any, Callable[[Tensor], Any]] = {}
        self._failed = False

    def __call__(self, positions: Tensor) -> Tensor:
        """(chains, *event) -> (chains,)."""
        return self._run("energy", self._energy, positions)

    def energy_and_gradient(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(chains, *event) -> (chains,), (chains, *event)."""
        gradient, energy = self._run("both", self._both, positions)
        return energy, gradient

    def _run(self, name: str, function: Callable[[Tensor], Any], positions: Tensor) -> Any:
        key = name, positions.shape, positions.dtype
        graph = self._graphs.get(key)
        with torch.no_grad():
            if graph is None:
                graph = self._graphs[key] = self._trace(function, positions)
            return graph(positions)

    def _trace(self, function: Callable[[Tensor], Any], positions: Tensor) -> Callable[[Tensor], Any]:
        def eager(x: Tensor) -> Any:
            with validation(False), _SoftCholesky():  # its checks read values, which no batched tensor has
                return function(x)

        if self._failed:
            return eager
        try:
            graph: Any = make_fx(eager)(positions)
            if self.compile:
                graph = torch.compile(graph, fullgraph=True, dynamic=False)
            graph(positions)
        except Exception as error:  # tracing runs arbitrary code of the program: whatever it raises means eager
            eager(positions)  # a program that is wrong raises here, as itself
            self._failed = True
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_REASON]}"
            warnings.warn(f"tracing the energy fell back to eager: {reason}", stacklevel=2)
            return eager
        return graph


def _alone(energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The energy inside a level of differentiation that nobody asks: Pyro's enumeration reads ``.data``, which a
    tensor of ``vmap`` alone refuses."""
    return lambda x: torch.func.vjp(energy, x)[0]


def _summed(energy: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        each = energy(x)
        return each.sum(), each

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        gradient, each = torch.func.grad(total, has_aux=True)(x)
        return gradient, each

    return both


class _SoftCholesky(TorchDispatchMode):
    """Where one chain's matrix is not positive definite its factor becomes NaN, and the others go on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func is aten._linalg_check_errors.default:
            return None
        result = func(*args, **(kwargs or {}))
        if func is aten.linalg_cholesky_ex.default:
            factor, info = result
            return factor.masked_fill((info != 0).unsqueeze(-1).unsqueeze(-1), torch.nan), info
        return result
