"""A guide whose density is a function of its draws alone: gradients do not reach its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from pyrodgm.traces import sample_sites

__all__ = ["refuse_noise", "stopped"]

_SAME = 0.01  # of a mean log-probability: far more than rounding, far less than other noise makes


def stopped(guide: nn.Module) -> Callable[..., Any]:
    r"""The guide as a program with its parameters held constant.

    Replayed on the guide's own draws it scores them as :math:`\log q_{\bar\phi}(z)` with the bar for
    "no gradient", so that :math:`\nabla_\phi` goes by way of z only and the score term, whose mean is
    0, is left out. The guide has to be a function of its arguments (no dropout), since it runs twice;
    :func:`refuse_noise` sees to that.

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


def refuse_noise(guide: nn.Module, drawn: Any, scored: Any, draws: dict[str, Tensor]) -> None:
    """Under Pyro's validation, see that both runs of a guide gave its draws the same density.

    Args:
        guide: for the error.
        drawn, scored: the trace of the guide, and that of the same guide replayed on its draws.
        draws: the sites' values, by name.
    Raises: ValueError if they did not: the guide is a function of noise besides its draws.
    """
    if not is_validation_enabled():
        return
    again = sample_sites(scored)
    for name, site in sample_sites(drawn).items():
        with torch.no_grad():
            first, second = (s["fn"].log_prob(draws[name]) for s in (site, again[name]))
            off = (first - second).abs().mean() > _SAME * (1 + first.abs().mean())
        if bool(off):
            raise ValueError(
                f"expected a guide that is a function of its arguments, got {type(guide).__name__}, whose site "
                f"{name!r} has another density when it runs again (dropout? corrupted data?); leave out stl=True or "
                "doubly=True, or put such a guide in eval mode"
            )
