"""The distribution of a generator's output: it can be sampled and not scored."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Generated"]


class Generated(TorchDistribution):
    """The law of x = generate(z) as a site: a draw is the generated value, and there is no density.

    Args:
        value: generated rows, (*B, *event).
        event_dim: how many of the last dimensions are one x.
    Raises: NotImplementedError when scored.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, value: Tensor, event_dim: int, validate_args: bool | None = None) -> None:
        self.value = value
        split = value.dim() - event_dim
        super().__init__(value.shape[:split], value.shape[split:], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Generated:
        return Generated(self.value.expand(torch.Size(batch_shape) + self.event_shape), len(self.event_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.value.expand(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> NoReturn:
        raise NotImplementedError(
            "an implicit model has no density: train it with pyrodgm.objectives.Adversarial (not an ELBO), "
            "and compare samples with pyrodgm.evaluation.energy_distance"
        )
