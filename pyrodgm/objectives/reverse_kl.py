"""Reverse KL: a density fitted by its own draws, to an unnormalised target or to another density."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from pyrodgm.core import Energy, GenerativeModel, Tractable, evaluating
from pyrodgm.distributions.flow import FlowDistribution
from pyrodgm.objectives.base import Objective

__all__ = ["Distillation", "ReverseKL", "log_target"]


def log_target(target: Energy | Callable[..., Tensor], x: Tensor, context: Tensor | None) -> Tensor:
    """The target's log-density up to a constant in nats, (*B, *event), (*B, C) -> (*B,).

    The target is an energy, or a function of x, or of x and the context where there is one.
    """
    if isinstance(target, Energy):
        return -target.energy(x, context)
    return target(x) if context is None else target(x, context)


class ReverseKL(Objective):
    r"""Fits a density q to an unnormalised target by q's own draws.

    .. math:: \mathbb E_{x \sim q(\cdot \mid c)} [ \log q(x \mid c) - \log \tilde p(x, c) ]
        = \mathrm{KL}(q \| p) - \log Z(c)

    in nats. It needs no data: ``fit(flow, None, ReverseKL(target))``. A row that is given (with its
    context) only says that one draw is wanted there. Draws must carry gradients (flows whose draws are cheap:
    couplings, IAF). Check what came of it with :func:`pyrodgm.evaluation.target_estimate`.

    Args:
        target: an :class:`~pyrodgm.core.Energy`, or a function (rows (B, *event)) or (rows, context) ->
            :math:`\log \tilde p` (B,). An energy is held as it is and is not trained.
        particles: draws for each row.
    Raises: ValueError for particles < 1; TypeError from ``check`` for a model that cannot score its draws, or whose
        draws carry no gradients.
    Source: Rezende and Mohamed (2015), arXiv:1505.05770, eq. 15; Papamakarios et al. (2021), arXiv:1912.02762, eq. 17.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> objective = ReverseKL(lambda x: -0.5 * x.square().sum(-1))
        >>> objective.loss(RealNVP(features=2), torch.zeros(8, 2)).shape
        torch.Size([])
    """

    held_out_name = "reverse KL - log Z"
    needs_data = False

    def __init__(self, target: Energy | Callable[..., Tensor], particles: int = 1) -> None:
        super().__init__()
        if particles < 1:
            raise ValueError(f"expected particles >= 1, got {particles}")
        self.particles = particles
        self.target = copy.deepcopy(target).requires_grad_(False).eval() if isinstance(target, Energy) else target

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Tractable):
            raise TypeError(f"expected a Tractable model (one that scores its draws), got {type(model).__name__}")
        with evaluating(model):
            context = torch.zeros(1, model.context, dtype=model.dtype, device=model.device) if model.context else None
            reparameterised = model.condition(context).has_rsample
        if not reparameterised:
            raise TypeError(
                f"expected a model whose draws carry gradients, got {type(model).__name__}; use a flow such as IAF"
            )

    def train(self, mode: bool = True) -> ReverseKL:
        super().train(mode)
        if isinstance(self.target, Energy):
            self.target.eval()
        return self

    def log_target(self, x: Tensor, context: Tensor | None) -> Tensor:
        """The target's log-density up to a constant, (K, B, *event), (B, C) -> (K, B)."""
        return log_target(self.target, x, context)

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        d = model.condition(context)  # type: ignore[operator]
        shape = torch.Size([self.particles, *(() if context is not None else (len(x),))])
        if isinstance(d, FlowDistribution):
            draws, log_q = d.rsample_and_log_prob(shape)
        else:
            draws = d.rsample(shape)
            log_q = d.log_prob(draws)
        return (log_q - self.log_target(draws, context)).mean()


class Distillation(ReverseKL):
    r"""Probability density distillation: a student q learns a teacher p from the student's own draws.

    .. math:: \mathrm{KL}(q \| p) = \mathbb E_{x \sim q(\cdot \mid c)} [ \log q(x \mid c) - \log p(x \mid c) ]

    The teacher scores in one pass what the student draws in one pass: a MAF, slow to sample, teaches an IAF.

    Args:
        teacher: a tractable model with the student's event shape and context; a frozen copy is kept.
        particles: draws for each row.
    Raises: TypeError for a teacher that cannot score; from ``check`` also ValueError for a student of another event
        shape or context, and what :class:`ReverseKL` raises.
    Source: van den Oord et al. (2018), Parallel WaveNet, arXiv:1711.10433, eq. 6-7.
    Example:
        >>> from pyrodgm.tractable import IAF, MAF
        >>> Distillation(MAF(features=2)).loss(IAF(features=2), torch.zeros(8, 2)).item()
        0.0
    """

    held_out_name = "KL to the teacher"

    def __init__(self, teacher: Tractable, particles: int = 1) -> None:
        if not isinstance(teacher, Tractable):
            raise TypeError(f"expected a Tractable teacher (one that scores), got {type(teacher).__name__}")
        super().__init__(teacher.log_prob, particles)
        self.teacher = copy.deepcopy(teacher).requires_grad_(False).eval()
        self.target = self.teacher.log_prob

    def check(self, model: GenerativeModel) -> None:
        super().check(model)
        if (model.event_shape, model.context) != (self.teacher.event_shape, self.teacher.context):
            raise ValueError(
                f"expected a student of event shape {tuple(self.teacher.event_shape)} and context "
                f"{self.teacher.context}, the teacher's, got {tuple(model.event_shape)} and {model.context}"
            )

    def train(self, mode: bool = True) -> Distillation:
        super().train(mode)
        self.teacher.eval()
        return self
