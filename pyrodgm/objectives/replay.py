"""Contrastive divergence whose negatives come from a replay buffer, some of them begun anew at every step."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pyrodgm.core import Energy, GenerativeModel
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.contrastive import ContrastiveDivergence

__all__ = ["ReplayDivergence"]


class ReplayDivergence(Objective):
    r"""Contrastive divergence with a sample replay buffer.

    .. math::
        L = \frac1B \sum_i E(x_i) - \frac1B \sum_i E(x^-_i) + \alpha \frac1B \sum_i (E(x_i)^2 + E(x^-_i)^2)

    Each step takes B chains out of a buffer of many, begins a share of them anew where the model starts its chains
    (for a neural energy: at draws of its base), moves them ``k`` times by the model's kernel and puts them back. So
    chains live long and yet come from everywhere. The gradient of the first two terms goes to that of -log p as the
    negatives go to p; the third flattens energies and biases them, and a confined energy needs none of it.

    The source moves by Langevin steps whose noise is smaller than the steps call for, and without a Metropolis test;
    the model's kernel (MALA) has the right noise and the test, so k steps leave p itself invariant.

    Args:
        k: moves of the kernel.
        capacity: chains in the buffer.
        restart: share of the chains that begin anew, in [0, 1].
        magnitude: :math:`\alpha \ge 0`.
    Raises: ValueError for k or capacity < 1, a restart outside [0, 1], a negative magnitude, or a conditional model,
        whose chains would each need their context (``JointLikelihood`` trains p(x | y) by way of p(x)).
    Source: Du and Mordatch (2019), arXiv:1903.08689, algorithm 1 and section 3.2; persistent chains: Tieleman (2008).
    Example:
        >>> from pyrodgm.energy import NeuralEnergy
        >>> model = NeuralEnergy.mlp(features=2, hidden=[16])
        >>> ReplayDivergence(k=2, capacity=64).loss(model, torch.zeros(8, 2)).shape
        torch.Size([])
    """

    def __init__(self, k: int = 20, capacity: int = 10_000, restart: float = 0.05, magnitude: float = 0.0) -> None:
        super().__init__()
        if not 0 <= restart <= 1:
            raise ValueError(f"expected restart inside [0, 1] (a share of the chains), got {restart}")
        if not magnitude >= 0:
            raise ValueError(f"expected magnitude >= 0, got {magnitude}")
        self.k, self.restart, self.magnitude = k, restart, magnitude
        self.buffer = ContrastiveDivergence(k, persistent=True, chains=capacity)

    def check(self, model: GenerativeModel) -> None:
        self.buffer.check(model)
        self.held_out_name = self.buffer.held_out_name

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        self.check(model)
        model = cast(Energy, model)
        x, context = model.check(x, context)
        chains = cast(Tensor, self.buffer.negatives)  # which check has made
        drawn = torch.randperm(len(chains), device=chains.device)[: len(x)]
        start = chains[drawn].to(x)
        anew = torch.rand(len(start), *[1] * (x.dim() - 1), device=x.device) < self.restart
        start = torch.where(anew, model.start(len(start)).to(x), start)
        negatives = model.run_kernel(start, None, self.k).detach()
        chains[drawn] = negatives.to(chains)
        up, down = model.energy(x), model.energy(negatives)
        gap = up.mean() - down.mean()
        return gap if self.magnitude == 0 else gap + self.magnitude * (up.square().mean() + down.square().mean())

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        """A negative log-likelihood of the rows, as :meth:`ContrastiveDivergence.held_out` gives it."""
        return self.buffer.held_out(model, x, context, n=n)

    def optimizer(self, player: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        # The source's beta_1 = 0: the energy's gradient follows the chains, and momentum would run past them.
        return torch.optim.Adam(parameters, lr=lr, betas=(0.0, 0.999))
