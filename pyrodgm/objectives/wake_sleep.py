"""Wake-sleep and reweighted wake-sleep: the model and the guide each follow a likelihood gradient of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.nn import Parameter

from pyrodgm.core import GenerativeModel, Latent
from pyrodgm.distributions.log_sum import that_count
from pyrodgm.objectives.base import Objective
from pyrodgm.objectives.importance import ImportanceWeighted
from pyrodgm.traces import refuse_auxiliary, sample_sites

__all__ = ["ReweightedWakeSleep", "WakeSleep", "generative_parameters"]


def generative_parameters(model: GenerativeModel) -> list[Parameter]:
    """The parameters of the program that its guide does not have too.

    Example:
        >>> from pyrodgm.latent import VAE
        >>> vae = VAE.mlp(features=6, latent=2, hidden=[8])
        >>> len(generative_parameters(vae)) + len(list(vae.guide.parameters())) == len(list(vae.parameters()))
        True
    """
    of_guide = {id(p) for p in model.guide.parameters()}
    return [p for p in model.parameters() if id(p) not in of_guide]


class _Alternating(Objective):
    """Two players, "model" and "guide", on a model with latents in its data plate."""

    def __init__(self, particles: int) -> None:
        super().__init__()
        if particles < 1:
            raise ValueError(f"expected particles >= 1, got {particles}")
        self.particles = particles

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Latent):
            raise TypeError(f"expected a Latent model (its guide is the other player), got {type(model).__name__}")

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        return {"model": generative_parameters(model), "guide": model.guide.parameters()}

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        with torch.no_grad():
            return ImportanceWeighted(self.particles).loss(model, x, context, n=n)

    def _wake(self, model: Latent, x: Tensor, context: Tensor | None) -> tuple[Any, Any]:
        """The guide's draws for rows, without gradients, and the program at them: two traces of K particles."""
        with torch.no_grad():
            drawn = model.particle_trace(model.guide, self.particles, x, context)
        return drawn, model.particle_trace(poutine.replay(model, trace=drawn), self.particles, x, context)

    @staticmethod
    def _dream(model: Latent, rows: int, context: Tensor | None, particles: int) -> Tensor:
        """-log q(z | x) of the model's own draws, a mean over ``particles`` for each row, ()."""
        if context is not None:
            context = context.repeat(particles, 1)
        with torch.no_grad():
            trace = poutine.trace(model).get_trace(None, context, n=rows * particles)
        dreamt = trace.nodes["x"]["value"]
        guide = poutine.trace(poutine.replay(model.guide, trace=trace)).get_trace(dreamt, context)
        refuse_auxiliary(guide, "dreams, which have no values for them")
        return -model.row_log_prob(guide).mean()


class WakeSleep(_Alternating):
    r"""The wake-sleep algorithm, for any latents and guide; nothing has to be reparameterised.

    .. math:: \text{model: } -E_{q(z \mid x)} \log p(x, z), \qquad
        \text{guide: } -E_{p(x', z')} \log q(z' \mid x')

    What the program shares with its guide (the components of a VampPrior) is the guide's, and moves by its loss alone.

    Args:
        particles: draws of the guide for each row, and dreams for each row.
    Source: Hinton et al. (1995), The wake-sleep algorithm for unsupervised neural networks, eq. 3-6.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> vae = VAE.mlp(features=6, latent=2, hidden=[8])
        >>> [player for player, _ in WakeSleep()(vae, torch.ones(4, 6))]
        ['model', 'guide']
    """

    held_out_name = "negative bound"

    def __init__(self, particles: int = 1) -> None:
        super().__init__(particles)

    def forward(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        latent = _latent(self, model)
        x, context = latent.check(x, context)
        _, program = self._wake(latent, x, context)
        yield "model", -latent.row_log_prob(program).mean()
        yield "guide", self._dream(latent, len(x), context, self.particles)


class ReweightedWakeSleep(_Alternating):
    r"""Wake-sleep with importance weights, whose bias goes away as K grows.

    .. math:: \text{model: } -\sum_k \tilde w_k \log p(x, z_k), \qquad
        \text{guide: } -\lambda \sum_k \tilde w_k \log q(z_k \mid x) - (1 - \lambda) \, E_{p(x', z')} \log q(z' \mid x')

    with :math:`z_k \sim q(z \mid x)` and :math:`\tilde w_k \propto p(x, z_k) / q(z_k \mid x)` without gradients. The
    model's gradient is that of the importance-weighted bound, in the parameters that are the program's alone: what it
    shares with its guide (the components of a VampPrior) is the guide's, and moves by its loss alone.

    Args:
        particles: K.
        insomnia: lambda, the share of the wake phase in the guide's loss: 1 never sleeps, 0 only sleeps.
    Raises: ValueError for particles < 1 or insomnia outside [0, 1]; TypeError for a guide whose density is known by a
        bound only (Hierarchical).
    Source: Bornschein and Bengio (2015), arXiv:1406.2751, eq. 7-11; Le et al. (2019), arXiv:1805.10469.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> vae = VAE.mlp(features=6, latent=2, hidden=[8])
        >>> [player for player, _ in ReweightedWakeSleep(particles=5)(vae, torch.ones(4, 6))]
        ['model', 'guide']
    """

    held_out_name = "negative bound"

    def __init__(self, particles: int = 5, insomnia: float = 1.0) -> None:
        super().__init__(particles)
        if not 0 <= insomnia <= 1:
            raise ValueError(f"expected insomnia in [0, 1], the share of the wake phase, got {insomnia}")
        self.insomnia = float(insomnia)

    def forward(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        latent = _latent(self, model)
        x, context = latent.check(x, context)
        drawn, program = self._wake(latent, x, context)
        with torch.no_grad():
            log_q = latent.row_log_prob(drawn)  # (K, B)
        log_p = latent.row_log_prob(program)
        share = that_count(log_p.detach() - log_q, 0).softmax(0)
        yield "model", -(share * log_p).sum(0).mean()
        loss: Tensor = x.new_zeros(())
        if self.insomnia > 0:
            # scored anew, with gradients and the guide as it is now
            guide = latent.particle_trace(poutine.replay(latent.guide, trace=drawn), self.particles, x, context)
            _refuse_learned_factor(guide)
            loss = loss - self.insomnia * (share * latent.row_log_prob(guide)).sum(0).mean()
        if self.insomnia < 1:
            loss = loss + (1 - self.insomnia) * self._dream(latent, len(x), context, 1)
        yield "guide", loss


def _refuse_learned_factor(guide: Any) -> None:
    """Raise TypeError for a guide, scored at given draws, with a factor that has parameters: that has no best value."""
    for name, site in sample_sites(guide).items():
        if isinstance(site["fn"], dist.Unit) and site["fn"].log_factor.requires_grad:
            raise TypeError(
                f"expected a guide that knows its density, got one with the factor {name!r} that bounds it; use ELBO "
                "or ImportanceWeighted, or another guide, such as FlowGuide"
            )


def _latent(objective: Objective, model: GenerativeModel) -> Latent:
    objective.check(model)
    return cast(Latent, model)
