"""The distribution function of a mixture of logistics as a map, followed by a logit and an affine map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pyrodgm.bijectors.univariate import Univariate

__all__ = ["MixtureLogisticCDF"]

_STEPS = 200  # of bisection at most; float64 needs about 60
_STRAIGHT = 0.01  # share of the identity in the map


class MixtureLogisticCDF(Univariate):
    r"""Flow++'s map: the distribution function of K logistics, a logit, a scale and a shift; P = 3 K + 2.

    .. math:: y = \Big[ (1 - \epsilon)\, \sigma^{-1}\!\Big( \sum_k \pi_k \sigma\big((x - \mu_k) e^{-s_k}\big) \Big)
        + \epsilon x \Big] e^{a} + b, \quad \epsilon = 0.01

    The inverse is by bisection to the dtype's precision, with an implicit gradient. All zeros
    give K equal components, hence the identity. Departure from the source: its map has no
    :math:`\epsilon x`; between far components it is flatter than floating point can invert.

    Args:
        components: K.
        bound: largest absolute value of :math:`s_k` and a.
    Raises: ValueError for components < 1 or a bound that is not positive.
    Source: Ho et al. (2019), arXiv:1902.00275, eq. 9-11.
    Example:
        >>> MixtureLogisticCDF(2).call_and_ladj(torch.zeros(8, 1), torch.tensor([0.5]))[0]
        tensor([0.5000])
    """

    def __init__(self, components: int = 4, bound: float = 5.0) -> None:
        if components < 1 or not bound > 0:
            raise ValueError(f"expected components >= 1 and bound > 0, got {components} and {bound}")
        self.components, self.bound = components, float(bound)
        self.size = 3 * components + 2

    def _split(self, raw: Tensor) -> tuple[Tensor, ...]:
        k = self.components
        weights, means, scales, last = raw.split((k, k, k, 2), -2)
        scales = self.bound * torch.tanh(scales / self.bound)
        scale, shift = last.unbind(-2)
        return torch.log_softmax(weights, -2), means, scales, self.bound * torch.tanh(scale / self.bound), shift

    def call_and_ladj(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, means, scales, scale, shift = self._split(raw)
        t = (x.unsqueeze(-2) - means) * torch.exp(-scales)
        # log F and log (1 - F) separately, so neither tail loses digits; log f as a mixture of logistic densities.
        log_cdf = torch.logsumexp(weights + F.logsigmoid(t), -2)
        log_rest = torch.logsumexp(weights + F.logsigmoid(-t), -2)
        log_density = torch.logsumexp(weights - scales + F.logsigmoid(t) + F.logsigmoid(-t), -2)
        curve = (1 - _STRAIGHT) * (log_cdf - log_rest) + _STRAIGHT * x
        slope = (1 - _STRAIGHT) * torch.exp(log_density - log_cdf - log_rest) + _STRAIGHT
        return torch.addcmul(shift, curve, scale.exp()), slope.log() + scale

    def inverse_and_ladj(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inverse(raw, y)
        return x, -self.call_and_ladj(raw, x)[1]

    def inverse(self, raw: Tensor, y: Tensor) -> Tensor:
        x: Tensor = _Bisect.apply(raw, y, self)
        return x

    def bracket(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """An interval that holds the inverse: each component alone would give x between these."""
        _, means, scales, scale, shift = self._split(raw)
        target = ((y - shift) * torch.exp(-scale)).unsqueeze(-2)
        slopes = (1 - _STRAIGHT) * torch.exp(-scales)
        each = (target + slopes * means) / (slopes + _STRAIGHT)
        return each.amin(-2), each.amax(-2)


class _Bisect(Function):
    """x with T(x; raw) = y by bisection, and its implicit gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(raw: Tensor, y: Tensor, univariate: MixtureLogisticCDF) -> Tensor:
        low, high = univariate.bracket(raw, y)
        look = not torch._C._are_functorch_transforms_active()  # under them no value can be looked at
        for _ in range(_STEPS):
            middle = 0.5 * (low + high)
            if look and bool(((middle == low) | (middle == high)).all()):
                break
            above = univariate.call_and_ladj(raw, middle)[0] > y
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return 0.5 * (low + high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        raw, _, ctx.univariate = inputs
        ctx.save_for_backward(raw, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        raw, x = ctx.saved_tensors
        found: Any = torch.func.vjp(lambda raw: ctx.univariate.call_and_ladj(raw, x), raw, has_aux=True)
        _, pull, ladj = found
        to_y = grad * torch.exp(-ladj)
        return pull(-to_y)[0], to_y, None
