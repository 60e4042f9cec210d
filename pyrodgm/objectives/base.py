r"""Contract 4, read this file first: an objective turns a model and rows into losses, one for each player.

An objective is a module: it owns what exists only for training (critics, chains, baselines),
and it is saved with the run. The engine takes the losses in turn, stepping the player each
belongs to *before* it asks for the next, so a critic has moved when the generator looks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from pyrodgm.core import GenerativeModel

__all__ = ["Objective", "fusable"]


class Objective(nn.Module):
    """Losses of a model on rows of data.

    Subclasses with one player write :meth:`loss`; those with several write :meth:`players` and
    :meth:`forward`. A loss is a mean over the rows (nats per datum), makes no host
    synchronisation, and can be traced.

    Attributes:
        unit: what the losses are measured in, for progress bars and plots.
        held_out_name: what :meth:`held_out` measures.
        lr: learning rate that suits :meth:`optimizer`.
        needs_data: False where the model's own draws are all that is learned from.
    Example:
        >>> class Tempered(Objective):
        ...     def check(self, model):
        ...         if model.family != "tractable":
        ...             raise TypeError(f"expected a tractable model, got the {model.family} one")
        ...     def loss(self, model, x, context=None, *, n=None):
        ...         return -(0.5 * model.log_prob(x, context)).mean()
        >>> from pyrodgm.tractable import RealNVP
        >>> Tempered().loss(RealNVP(features=2), torch.zeros(4, 2)).shape
        torch.Size([])
    """

    unit: str = "nats/datum"
    lr: float = 1e-3
    held_out_name: str = "loss"
    needs_data: bool = True

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        """The parameters that each loss moves."""
        return {"model": model.parameters()}

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        """The loss of the only player: x (B, *event), context (B, C) -> ()."""
        raise NotImplementedError(f"{type(self).__name__} must define loss, or players and forward")

    def forward(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """(player, loss) pairs, lazily; n is the size of the whole data set that the rows stand for."""
        yield "model", self.loss(model, x, context, n=n)

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        """A score of held-out rows, smaller is better: a mean over them, without gradients."""
        with torch.no_grad():
            return self.loss(model, x, context, n=n)

    def optimizer(self, player: str, parameters: list[Parameter], lr: float) -> torch.optim.Optimizer:
        """The optimiser that ``fit`` uses where none is given: fused Adam."""
        return torch.optim.Adam(parameters, lr=lr, fused=fusable(parameters))

    def check_optimizer(self) -> None:
        """Raise ValueError if an optimiser of the user's own would leave out what this objective's does."""

    @abstractmethod
    def check(self, model: GenerativeModel) -> None:
        """Raise TypeError if the model's family cannot answer this objective."""


def fusable(parameters: list[Parameter]) -> bool:
    """Whether torch's fused optimisers take these parameters."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
