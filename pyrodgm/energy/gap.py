"""The energy gap of two linked layers, data less negatives, with its gradient in closed form, centred if wanted."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

__all__ = ["Gap", "Offsets", "energy_gap"]


class Offsets(NamedTuple):
    """What the units of two layers are measured from: their means on the data.

    Attributes:
        visible: (V,), of the statistics.
        hidden: (H,).
    """

    visible: Tensor
    hidden: Tensor


class Gap(NamedTuple):
    """An energy gap and what the data said on the way.

    Attributes:
        value: (), nats, with gradients.
        means: of both layers over the data rows, without gradients.
    """

    value: Tensor
    means: Offsets


class _Gap(torch.autograd.Function):
    """See :func:`energy_gap`; one product forward and one backward, over data and negatives in one matrix."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        b: Tensor,
        c: Tensor,
        t: Tensor,
        rows: int,
        copies: tuple[int, int],
        posterior: Tensor | None,
        offsets: Offsets | None,
        linked: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        inputs = torch.addmm(c, t, weight.t()).to(t.dtype)  # autocast may have made it shorter
        each = t.new_full((len(t),), -1 / (len(t) - rows))
        each[:rows] = 1 / rows
        if posterior is None:
            hidden, h = softplus(inputs).sum(-1), inputs.sigmoid()
        else:
            linear = (posterior * inputs[:rows]).sum(-1)
            hidden, h = torch.cat((linear, softplus(inputs[rows:]).sum(-1))), inputs.sigmoid()
            h[:rows] = posterior
        ctx.save_for_backward(weight, b, t, h, each, linked, *(offsets or ()))
        ctx.copies = copies
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(h)
        return -(each * (t @ b + copies[1] * hidden)).sum(), h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        weight, b, t, h, each, linked, *offsets = ctx.saved_tensors
        below, above = ctx.copies
        each = -grad * each
        grad_t = None
        if ctx.needs_input_grad[3]:
            grad_t = each.unsqueeze(-1) * torch.addmm(b, h, weight, alpha=above)
        grad_b, scaled = each @ t, above * each.unsqueeze(-1)
        if not offsets:
            r = h * scaled
            return (r.t() @ t, grad_b, r.sum(0), grad_t, *[None] * 5)
        visible, hidden = below * offsets[0], offsets[1]
        grad_c = (h * scaled).sum(0)
        grad_w = ((h - hidden) * scaled).t() @ (t - visible)
        if linked is not None:
            grad_w *= linked
        return (grad_w, grad_b - above * (hidden @ grad_w), grad_c - grad_w @ visible, grad_t, *[None] * 5)


def energy_gap(
    weight: Tensor,
    b: Tensor,
    c: Tensor,
    data: Tensor,
    negatives: Tensor,
    *,
    copies: tuple[int, int] = (1, 1),
    posterior: Tensor | None = None,
    offsets: Offsets | None = None,
    linked: Tensor | None = None,
) -> Gap:
    r"""Mean energy of the data less that of the negatives, for two layers of which the hidden one is summed out.

    .. math::
        L = \frac1N \sum_n E(t_n) - \frac1M \sum_m E(t^-_m), \qquad
        E(t) = -b^\top t - B \sum_j \log(1 + e^{c_j + W_j t})

    With ``offsets`` :math:`\mu, \lambda` the gradient is the centred one, of
    :math:`-b^\top t - c^\top h - (h - \lambda)^\top W (t - \mu)` put back into the parameters above,

    .. math::
        \tilde\nabla_W = \nabla_W - \nabla_c \mu^\top - \lambda \nabla_b^\top, \qquad
        \tilde\nabla_b = \nabla_b - \tilde\nabla_W^\top \lambda, \qquad
        \tilde\nabla_c = \nabla_c - \tilde\nabla_W \mu

    a direction of descent like the gradient itself (the metric is that of the centred parameters), in which flipping
    zeros and ones of a unit changes nothing: on binarized MNIST its steps went further in as many epochs.

    Args:
        weight: W, (H, V).
        b, c: (V,), (H,).
        data: statistics t, (N, V).
        negatives: (M, V).
        copies: A, how many copies of the visible layer t sums up, and B, of the hidden one.
        posterior: means of the hidden units for the data rows, (N, H), where they are not :math:`p(h \mid t)`; the
            data's energy is then its mean under them.
        offsets: see above; of one copy.
        linked: 1 where a weight exists, 0 where it must stay 0, (H, V); default everywhere.
    Shapes: returns () and the means (V,), (H,) of the data; the gradients are in closed form.
    Source: Cho, Raiko and Ilin (2011), Enhanced gradient and adaptive learning rate for training restricted Boltzmann
        machines, ICML; Montavon and Mueller (2012), Deep Boltzmann machines and the centering trick; Melchior, Fischer
        and Wiskott (2016), How to center deep Boltzmann machines, JMLR 17.
    Example:
        >>> gap = energy_gap(torch.zeros(2, 3), torch.ones(3), torch.zeros(2), torch.ones(4, 3), torch.zeros(5, 3))
        >>> gap.value
        tensor(-3.)
    """
    rows, t = len(data), torch.cat((data, negatives))
    value, h = _Gap.apply(weight, b, c, t, rows, copies, posterior, offsets, linked)
    return Gap(value, Offsets(data.detach().mean(0) / copies[0], h[:rows].mean(0)))
