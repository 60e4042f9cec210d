"""The distribution of an energy model: its density is known up to a constant, and it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrodgm.kernels.base import refuse_memory
from pyrodgm.shapes import expand_to

if TYPE_CHECKING:
    from pyrodgm.core import Energy

__all__ = ["Unnormalised"]


class Unnormalised(TorchDistribution):
    r"""p(x) = exp(-E(x)) / Z with unknown Z.

    ``log_prob`` is :math:`-E(x)`: right up to the constant -log Z, so enough for MCMC over x and
    never a likelihood (``normalized`` is False). While the model trains, its *gradient* is the
    whole gradient of log p, the missing part estimated by negatives that the model's kernel draws:

    .. math:: \nabla \log p(x) = -\nabla E(x) + \mathbb E_{x' \sim p} \nabla E(x')

    so a program with such a site learns under stock ``pyro.infer.SVI``. Under a context that is itself unknown the
    constant is none: -log Z(context) is missing from the value, and in eval mode a context with a gradient is refused.

    Source: Hinton (2002), Training products of experts, eq. 3-4 (contrastive divergence).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False
    normalized = False

    def __init__(
        self,
        model: Energy,
        context: Tensor | None = None,
        batch_shape: tuple[int, ...] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.model = model
        self.context = context
        if batch_shape is None:
            batch_shape = () if context is None else tuple(context.shape[:-1])
        super().__init__(torch.Size(batch_shape), model.event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return self.model.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Unnormalised:
        return Unnormalised(self.model, self.context, batch_shape, validate_args=self._validate_args)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        rows = shape[: len(shape) - len(self.event_shape)]
        context = None if self.context is None else self.context.expand(*rows, -1).reshape(rows.numel(), -1)
        with torch.no_grad():
            return self.model._draw(rows.numel(), context).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_prob = -self.model.energy(value, self.context)
        learning = torch.is_grad_enabled()
        if learning and not self.model.training and self.context is not None and self.context.requires_grad:
            raise TypeError(
                "expected a fixed context, got one with a gradient: log Z depends on it and is left out here; detach "
                "it, or call model.train() to have log Z's gradient estimated"
            )
        if self.model.training and learning:
            refuse_memory(self.model.kernel, "negatives")
            event = value.dim() - len(self.event_shape)
            lead = torch.broadcast_shapes(value.shape[:event], self.batch_shape)
            context = None if self.context is None else self.context.expand(*lead, -1).reshape(lead.numel(), -1)
            rows = value.expand(lead + self.event_shape).reshape(lead.numel(), *self.event_shape)
            try:
                negatives = self.model.run_kernel(rows, context, self.model.negative_steps)
            except RuntimeError as error:
                if "functorch" not in str(error) and "vmap" not in str(error):
                    raise
                raise ValueError(
                    "expected an energy model in eval mode inside torch.func, as pyrodgm.mcmc has it, got one that "
                    "trains by draws of its kernel; call model.eval() before MCMC"
                ) from error
            missing = self.model.energy(negatives, context).reshape(lead)
            log_prob = log_prob + (missing - missing.detach())  # adds 0 to the value, the log Z term to the gradient
        return expand_to(log_prob, self.batch_shape)
