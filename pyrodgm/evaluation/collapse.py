"""A word during training when the posterior collapses."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from pyrodgm.core import GenerativeModel, Latent
from pyrodgm.evaluation.latent import LatentUse, latent_use

__all__ = ["CollapseWarning", "WatchCollapse"]


class CollapseWarning(UserWarning):
    """The latents carry next to nothing about x: the guide has become the prior."""


class WatchCollapse:
    """A callback of ``fit``: measures the use of the latents after each epoch and warns once when they collapse.

    The measures go into the epoch's row of the history, as "active_units", "kl", "information" and "mmd".

    Args:
        x: rows to measure on, (B, *event); a few hundred held-out ones do.
        context: (B, C).
        wait: epochs without a warning, since every model begins without information.
    Attributes:
        history: a :class:`LatentUse` for each epoch.
    Raises: ValueError for wait < 0; TypeError in a run of a model without latents.
    Example:
        >>> import pyrodgm, torch
        >>> from pyrodgm.latent import VAE
        >>> x = torch.rand(64, 6).round()
        >>> watch = WatchCollapse(x, wait=2)
        >>> run = pyrodgm.fit(VAE.mlp(6, 2, [8]), x, epochs=2, callbacks=[watch], progress=False)
        >>> "active_units" in run.history[-1], len(watch.history)
        (True, 2)
    """

    def __init__(self, x: Tensor, context: Tensor | None = None, wait: int = 5) -> None:
        if wait < 0:
            raise ValueError(f"expected wait >= 0 epochs, got {wait}")
        self.x, self.context, self.wait = x, context, wait
        self.history: list[LatentUse] = []
        self.warned = False

    def __call__(self, run: Any) -> bool:
        model: GenerativeModel = run.model
        if not isinstance(model, Latent):
            raise TypeError(f"expected a Latent model to watch, got {type(model).__name__}")
        use = latent_use(model, self.x, self.context)
        self.history.append(use)
        run.history[-1].update(active_units=float(use.active), kl=use.kl, information=use.information, mmd=use.distance)
        if use.collapsed and len(self.history) > self.wait and not self.warned:
            self.warned = True
            warnings.warn(
                f"posterior collapse: {use.active} of {use.units} units active and {use.information:.3g} nats about x "
                f"in z after {len(self.history)} epochs; try ELBO(beta=CyclicalAnnealing(...)), "
                "ELBO(free_bits=FreeBits(0.1)) or LaggingInference()",
                CollapseWarning,
                stacklevel=2,
            )
        return False
