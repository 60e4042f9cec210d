"""A guide whose density is a function of its draws alone: gradients do not reach its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["stopped"]


def stopped(guide: nn.Module) -> Callable[..., Any]:
    r"""The guide as a program with its parameters held constant.

    Replayed on the guide's own draws it scores them as :math:`\log q_{\bar\phi}(z)` with the bar for
    "no gradient", so that :math:`\nabla_\phi` goes by way of z only and the score term, whose mean is
    0, is left out. The guide has to be a function of its arguments (no dropout), since it runs twice.

    Source: Roeder et al. (2017), arXiv:1703.09194, algorithm 2.
    Example:
        >>> import torch
        >>> from pyrodgm.latent import VAE
        >>> guide = VAE.mlp(features=6, latent=2, hidden=[8]).guide
        >>> stopped(guide)(torch.ones(4, 6)).requires_grad, guide(torch.ones(4, 6)).requires_grad
        (False, True)
    """
    constants = {name: p.detach() for name, p in guide.named_parameters()}

    def program(*arguments: Any, **options: Any) -> Any:
        return torch.func.functional_call(guide, constants, arguments, options)

    return program
