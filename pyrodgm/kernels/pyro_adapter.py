"""Our kernels inside ``pyro.infer.mcmc.MCMC``."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from pyrodgm.core import Energy
from pyrodgm.kernels.base import Kernel, State, Tuner, refuse_memory

__all__ = ["PyroKernel", "PyroMachineKernel"]

Params = dict[str, Tensor]


class _Face(MCMCKernel):
    """The start of a chain: what Pyro has given, before it calls ``setup``, or what ``setup`` finds."""

    def __init__(self) -> None:
        super().__init__()
        self._given: Params | None = None
        self._initial: Params = {}

    @property
    def initial_params(self) -> Params:
        return self._initial

    @initial_params.setter
    def initial_params(self, params: Params) -> None:
        self._given = params


class PyroKernel(_Face):
    r"""A :class:`~pyrodgm.kernels.base.Kernel` over the latent sites of a Pyro program.

    The chain stands in the unconstrained space, all sites flattened into one vector: the potential is

    .. math:: U(u) = -\log p(z(u), x) - \log \left| \det \frac{\partial z}{\partial u} \right|

    where z(u) maps it back to the sites' supports. Discrete sites are summed out by enumeration. Pyro's warm-up steps
    tune the kernel as those of :func:`pyrodgm.mcmc` do, by the one chain that there is.

    Args:
        kernel: one that moves by energies, such as HMC or NUTS; ChEES and MEADS want more chains to tune by.
        model: program with Pyro sample sites; its arguments come from ``MCMC.run``.
    Raises: ValueError from ``run`` if the program has no continuous latent site or its initial energy is not finite.
    Source: Phan et al. (2019), arXiv:1912.11554 (Pyro's MCMC interface).
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> from pyrodgm.kernels import MALA
        >>> def model():
        ...     return pyro.sample("scale", dist.Gamma(3.0, 1.0))
        >>> mcmc = MCMC(MALA(0.5).pyro(model), num_samples=10, warmup_steps=5, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["scale"].shape
        torch.Size([10])
    """

    def __init__(self, kernel: Kernel, model: Callable[..., Any]) -> None:
        super().__init__()
        self.kernel = kernel
        self.model = model
        self.transforms: dict[str, Any] | None = None  # MCMC reads it after the run, cleanup leaves it
        self._clear()

    def _clear(self) -> None:
        self._initial: Params = {}
        self._potential: Callable[[Params], Tensor] | None = None
        self._state: State | None = None
        self._tuner: Tuner | None = None
        self._last: Params | None = None
        self._warmup_steps = 0
        self._steps = 0
        self._accept_sum = 0.0

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        self._clear()
        # Pyro sets initial_params before it calls setup, which must not overwrite them
        initial, self._potential, self.transforms, _ = initialize_model(
            self.model, model_args=args, model_kwargs=kwargs, initial_params=self._given
        )
        if not self.transforms:
            raise ValueError("expected a program with a continuous latent site, got none; sample one without obs=")
        if set(initial) != set(self.transforms):
            raise ValueError(f"expected initial_params for {sorted(self.transforms)}, got {sorted(initial)}")
        self._initial = {name: initial[name].detach() for name in sorted(initial)}
        self._warmup_steps = warmup_steps

    def cleanup(self) -> None:
        self._clear()
        self._given = None

    def sample(self, params: Params) -> Params:
        if self._state is None or params is not self._last:  # somebody moved the chain
            self._state = self.kernel.init(self._energy, self._pack(params))
            if self._state.energy is not None and not bool(self._state.energy.isfinite().all()):
                raise ValueError(
                    f"expected a finite energy at the initial parameters, got {self._state.energy.item()}; "
                    "pass MCMC initial_params= of positive density (in the unconstrained space)"
                )
        old = self._state
        if self._tuner is None and self._warmup_steps:
            self._tuner = self.kernel.tuner(old, self._warmup_steps)
        kernel = self.kernel if self._tuner is None else self._tuner.kernel
        self._state, info = kernel.step(old)
        if self._tuner is not None and self._steps < self._warmup_steps:
            self._tuner.update(old, self._state, info)
        if self._steps == self._warmup_steps:
            self._accept_sum = 0.0
        self._steps += 1
        self._accept_sum += info.accept_prob.mean().item()
        self._last = self._unpack(self._state.positions[0])
        return self._last

    @property
    def _accept_rate(self) -> float:
        counted = self._steps - self._warmup_steps if self._steps > self._warmup_steps else self._steps
        return self._accept_sum / counted if counted else math.nan

    def logging(self) -> OrderedDict[str, str]:
        return OrderedDict([("acc. prob", f"{self._accept_rate:.3f}")])

    def diagnostics(self) -> dict[str, float]:
        return {"acceptance rate": self._accept_rate}

    def _energy(self, positions: Tensor) -> Tensor:
        potential = self._potential
        if potential is None:
            raise ValueError("expected setup before sample, got neither; let pyro.infer.MCMC run the kernel")
        return torch.stack([potential(self._unpack(row)).reshape(()) for row in positions])

    def _pack(self, params: Params) -> Tensor:
        """All the sites in one vector of the widest dtype, with the chain in front: (1, D)."""
        dtype = reduce(torch.promote_types, [value.dtype for value in self._initial.values()])
        return torch.cat([params[name].reshape(-1).to(dtype) for name in self._initial]).unsqueeze(0)

    def _unpack(self, row: Tensor) -> Params:
        """The sites of one chain, each of its own shape and dtype."""
        parts = row.split([value.numel() for value in self._initial.values()])
        return {
            name: part.reshape(value.shape).to(value.dtype)
            for (name, value), part in zip(self._initial.items(), parts, strict=True)
        }


class PyroMachineKernel(_Face):
    """A :class:`~pyrodgm.kernels.base.Kernel` over an energy model's x: one ``run_kernel`` move a step, no warm-up.

    It is for states that no Pyro program has as latents, such as the units of a Boltzmann machine.

    Args:
        kernel: one that starts anew at every step, such as a Gibbs kernel.
        model: the energy model; its context (C,), if it has one, comes from ``MCMC.run``.
    Raises: TypeError for a kernel that has to run on from step to step (ParallelTempering, SGHMC).
    Example:
        >>> from pyro.infer import MCMC
        >>> from pyrodgm.energy import RBM
        >>> rbm = RBM(4, 2)
        >>> mcmc = MCMC(rbm.kernel.pyro(rbm), num_samples=10, warmup_steps=5, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["x"].shape
        torch.Size([10, 4])
    """

    def __init__(self, kernel: Kernel, model: Energy) -> None:
        refuse_memory(kernel, "pyro.infer.MCMC over an energy model")
        super().__init__()
        self.kernel, self.model = kernel, model
        self.transforms: dict[str, Any] = {}  # x is drawn as it is
        self._context: Tensor | None = None

    def setup(self, warmup_steps: int, context: Tensor | None = None) -> None:
        _, context = self.model.check(None, context)
        self._context = None if context is None else context.reshape(1, -1)
        start = self.model.start(1, self._context)[0] if self._given is None else self.model.check_x(self._given["x"])
        self._initial = {"x": start}

    def cleanup(self) -> None:
        self._given = None

    def sample(self, params: Params) -> Params:
        own = self.model.kernel
        self.model.kernel = self.kernel
        try:
            return {"x": self.model.run_kernel(params["x"].unsqueeze(0), self._context, 1)[0]}
        finally:
            self.model.kernel = own
