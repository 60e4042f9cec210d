"""The joint likelihood of rows and labels under an energy that is a classifier (JEM)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pyrodgm.core import GenerativeModel
from pyrodgm.energy.joint import JointEnergy
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.replay import ReplayDivergence

__all__ = ["JointLikelihood"]


class JointLikelihood(Objective):
    r"""Cross-entropy of the labels plus an objective of the marginal: :math:`\log p(x, y) = \log p(x) + \log p(y | x)`.

    .. math:: L = L_{\text{marginal}}(p(x)) - \frac1B \sum_i y_i^\top \log \mathrm{softmax}(f(x_i))

    Labels come one-hot as the context of a ``JointEnergy(..., context=classes)``; a row of zeros is an unlabelled
    row and takes part in p(x) alone, as all rows do of a model without context.

    Args:
        marginal: an objective of one player for energies without context; default :class:`ReplayDivergence`.
    Shapes: x (B, *event), context (B, K) -> ().
    Raises: TypeError from ``check`` for other models; ValueError for a marginal of several players.
    Source: Grathwohl et al. (2020), arXiv:1912.03263, eq. 8 and algorithm 1 (with SGLD and a replay buffer).
    Example:
        >>> joint = JointEnergy.mlp(features=2, classes=3, hidden=[16], context=3)
        >>> labels = torch.eye(3)[torch.tensor([0, 1, 2, 1])]
        >>> JointLikelihood(ReplayDivergence(k=2, capacity=64)).loss(joint, torch.zeros(4, 2), labels).shape
        torch.Size([])
    """

    held_out_name = "cross-entropy"

    def __init__(self, marginal: Objective | None = None) -> None:
        super().__init__()
        self.marginal = ReplayDivergence() if marginal is None else marginal
        if type(self.marginal).forward is not Objective.forward:
            raise ValueError(f"expected a marginal objective of one player, got {type(self.marginal).__name__}")
        self.lr = self.marginal.lr

    def players(self, model: GenerativeModel) -> dict[str, Iterable[nn.Parameter]]:
        return self.marginal.players(model)

    def check(self, model: GenerativeModel) -> None:
        self.marginal.check(_joint(model).marginal())
        self.held_out_name = JointLikelihood.held_out_name if model.context else self.marginal.held_out_name

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        joint = _joint(model)
        x, context = joint.check(x, context)
        loss = self.marginal.loss(joint.marginal(), x, n=n)
        return loss if context is None else loss + _cross_entropy(joint, x, context)

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        """Cross-entropy of the labels, the marginal objective's own score where there are none."""
        joint = _joint(model)
        x, context = joint.check(x, context)
        if context is None:
            return self.marginal.held_out(joint, x, n=n)
        with torch.no_grad():
            return _cross_entropy(joint, x, context)

    def optimizer(self, player: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return self.marginal.optimizer(player, parameters, lr)


def _joint(model: GenerativeModel) -> JointEnergy:
    if not isinstance(model, JointEnergy):
        raise TypeError(f"expected a JointEnergy, whose logits are an energy too, got {type(model).__name__}")
    return model


def _cross_entropy(model: JointEnergy, x: Tensor, labels: Tensor) -> Tensor:
    return -(labels * model.logits(x).log_softmax(-1)).sum(-1).mean()
