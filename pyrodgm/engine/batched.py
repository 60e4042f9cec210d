"""The energy of one point as the energy of many chains: vmap, one traced graph, compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pyrodgm.engine.surroundings import validation

__all__ = ["BatchedEnergy", "has_no_rule"]

_REASON = 300  # characters of an error that a warning repeats


def has_no_rule(error: RuntimeError) -> bool:
    """Whether torch.func says that it has no rule for an ``autograd.Function``: then it names this page."""
    return "notes/extending.func" in str(error)


class BatchedEnergy:
    """An energy over chains, with its gradient in one pass.

    The function is traced once for the shape of the chains; where that fails, it runs as it is, with one warning
    that names the reason. Where ``torch.func`` refuses it, as an ``autograd.Function`` without ``setup_context``, the
    chains run one by one, with one warning too.

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
        self._untraced = _Untraced(energy, batched)
        self._looped = _Looped(energy, batched)
        self._graphs: dict[Any, Callable[..., Any]] = {}
        self._failed = False

    @torch.no_grad()
    def __call__(self, positions: Tensor) -> Tensor:
        """(chains, *event) -> (chains,)."""
        return self.fused(_Untraced.__call__, positions)(positions)

    @torch.no_grad()
    def energy_and_gradient(self, positions: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """(chains, *event) -> (chains,), (chains, *event); rows (chains, n) each, for an energy that reads some."""
        return self.fused(_Untraced.energy_and_gradient, positions, *rows)(positions, *rows)

    @torch.no_grad()
    def eager(self, positions: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        """As ``energy_and_gradient``, for the few calls that no graph is worth."""
        return self._eager(_Untraced.energy_and_gradient)(positions, *rows)

    def fused(self, function: Callable[..., Any], *tensors: Tensor) -> Callable[..., Any]:
        """``function(potential, *tensors)`` as one graph for contiguous tensors of these shapes.

        What a kernel does around a gradient then costs no operations of its own.

        Args:
            function: of tensors alone; its potential has ``energy_and_gradient``, like this one.
        """
        key = function, *[t.shape for t in tensors], *[t.dtype for t in tensors]
        graph = self._graphs.get(key)
        if graph is None:
            with torch.no_grad():
                # copies: one tensor in two places would be traced as one argument
                graph = self._graphs[key] = self._trace(function, [t.clone().contiguous() for t in tensors])
        return graph

    def _plain(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def plain(*tensors: Tensor) -> Any:
            with validation(False), _SoftCholesky():  # its checks read values, which no batched tensor has
                return tree_map(Tensor.contiguous, function(self._untraced, *tensors))

        return plain

    def _eager(self, function: Callable[..., Any]) -> Callable[..., Any]:
        plain = self._plain(function)

        def eager(*tensors: Tensor) -> Any:
            try:
                return plain(*tensors)
            except RuntimeError as error:
                if self._untraced is self._looped or not has_no_rule(error):
                    raise
                self._fall_back("the energies of the chains are computed one by one", error)
                self._untraced = self._looped
                return plain(*tensors)

        return eager

    def _fall_back(self, what: str, error: Exception) -> None:
        """Trace no more, and say why."""
        self._failed = True
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_REASON]}"
        warnings.warn(f"{what}: {reason}", stacklevel=3)

    def _trace(self, function: Callable[..., Any], tensors: list[Tensor]) -> Callable[..., Any]:
        eager = self._eager(function)
        if self._failed:
            return eager
        try:
            graph: Any = make_fx(self._plain(function))(*tensors)
            if self.compile:
                import torch._inductor

                # without torch.compile's guards, which cost more than a small model's energy: the key is the guard
                graph = torch._inductor.compile(graph, list[Any](tensors))
            graph(*tensors)
        except Exception as error:  # tracing runs arbitrary code of the program: whatever it raises means eager
            eager(*tensors)  # a program that is wrong raises here, as itself
            if not self._failed:
                self._fall_back("tracing the energy fell back to eager", error)
            return eager
        return graph


class _Untraced:
    """The potential as it stands inside a graph."""

    def __init__(self, energy: Callable[[Tensor], Tensor], batched: bool) -> None:
        self._energy = energy if batched else torch.func.vmap(_alone(energy))
        self._both = _summed(energy) if batched else torch.func.vmap(torch.func.grad_and_value(energy))

    def __call__(self, positions: Tensor) -> Tensor:
        return self._energy(positions)

    def energy_and_gradient(self, positions: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        gradient, energy = self._both(positions, *rows)
        return energy, gradient


class _Looped(_Untraced):
    """The potential chain by chain, by autograd's tape."""

    def __init__(self, energy: Callable[..., Tensor], batched: bool) -> None:
        def one_by_one(*tensors: Tensor) -> Tensor:
            return torch.stack([energy(*one) for one in zip(*tensors, strict=True)])

        self._energy = energy if batched else one_by_one
        self._both = self._by_tape

    def _by_tape(self, positions: Tensor, *rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = positions.detach().requires_grad_()
            energy = self._energy(x, *rows)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return gradient, energy.detach()


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
