"""Games about the latents: the adversarial autoencoder and adversarial variational Bayes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from pyro import poutine
from torch import Tensor, nn
from torch.nn import Parameter

from pyrodgm.core import GenerativeModel, Latent, evaluating
from pyrodgm.guides.contrast import Contrast
from pyrodgm.guides.implicit import ImplicitGuide
from pyrodgm.nets.mlp import MLPCritic
from pyrodgm.objectives.adversarial import Game, Minimax, NonSaturating, game_optimizer
from pyrodgm.objectives.base import Objective
from pyrodgm.traces import check_reparameterised, latent_rows, refuse_masked, sample_sites, site_log_prob

__all__ = ["AdversarialAutoencoder", "AdversarialVariationalBayes"]


class _LatentGame(Objective):
    """A critic of latents; the guide has to be sampled with gradients and needs no density."""

    held_out_name = "negative bound by critic"

    def __init__(self, critic: nn.Module, critic_steps: int) -> None:
        super().__init__()
        if critic_steps < 1:
            raise ValueError(f"expected critic_steps >= 1, got {critic_steps}")
        self.critic, self.critic_steps = critic, critic_steps

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Latent):
            raise TypeError(f"expected a Latent model (the critic sees its latents), got {type(model).__name__}")

    def optimizer(self, player: str, parameters: list[Parameter], lr: float) -> torch.optim.Optimizer:
        return game_optimizer(parameters, lr)

    @staticmethod
    def _run(model: GenerativeModel, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | float]:
        """log p(x | z), z of the guide with its gradients, and log p(z) for the prior's gradient: (B,), (B, Z), (B,).

        The last is 0 with that gradient; z tells the guide nothing there, which hears of the prior by the critic.
        """
        drawn = poutine.trace(model.guide).get_trace(x, context)
        check_reparameterised(drawn)
        z, guide_sites = latent_rows(drawn, len(x)), sample_sites(drawn)
        program_trace = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(x, context)
        refuse_masked(program_trace, "a critic")
        program = sample_sites(program_trace)
        seen = torch.stack([site_log_prob(site) for name, site in program.items() if name not in guide_sites]).sum(0)
        latents = [name for name in program if name in guide_sites]
        if not any(program[name]["fn"].log_prob(program[name]["value"].detach()).requires_grad for name in latents):
            return seen, z, 0.0
        for site in guide_sites.values():
            site["value"] = site["value"].detach()
        again = sample_sites(poutine.trace(poutine.replay(model, trace=drawn)).get_trace(x, context))
        log_prior = torch.stack([site_log_prob(again[name]) for name in latents]).sum(0)
        return seen, z, log_prior - log_prior.detach()

    @staticmethod
    @torch.no_grad()
    def _draws(model: GenerativeModel, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """z of the guide and z of the prior beside the rows, (B, Z) each."""
        # The program on given rows, not replayed, draws latents from the prior and need not sample x.
        traces = [poutine.trace(program).get_trace(x, context) for program in (model.guide, model)]
        refuse_masked(traces[1], "a critic")
        guide, prior = (latent_rows(trace, len(x)) for trace in traces)
        return guide, prior


class AdversarialAutoencoder(_LatentGame):
    r"""Reconstruction, and a game that gives the aggregate posterior the prior's shape.

    .. math:: \text{model: } -\frac1B \sum_b E_q \log p(x_b \mid z), \qquad \text{critic and guide: the game between }
        z \sim p(z) \text{ (real) and } z \sim q(z) \text{ (fake)}

    The guide moves in two phases, with the model and against the critic. The held-out score is the reconstruction
    with the critic's estimate of KL(q(z) || p(z)).

    Args:
        critic: module (z (B, Z), context (B, C) or None) -> scores (B,).
        game: the two losses; default :class:`NonSaturating`.
        critic_steps: critic steps for each step of the guide.
    Raises: ValueError for critic_steps < 1; TypeError if the guide is not reparameterised, a latent is masked, or the
        prior has parameters to train, which no player of this game moves.
    Source: Makhzani et al. (2015), arXiv:1511.05644, section 2.
    Example:
        >>> from pyrodgm.latent import VAE
        >>> vae = VAE.mlp(features=6, latent=2, hidden=[8])
        >>> [player for player, _ in AdversarialAutoencoder.mlp(vae, [8])(vae, torch.ones(4, 6))]
        ['model', 'critic', 'guide']
    """

    def __init__(self, critic: nn.Module, game: Game | None = None, critic_steps: int = 1) -> None:
        super().__init__(critic, critic_steps)
        self.game = NonSaturating() if game is None else game

    @classmethod
    def mlp(
        cls,
        model: GenerativeModel,
        hidden: Sequence[int] = (256, 256),
        game: Game | None = None,
        critic_steps: int = 1,
    ) -> AdversarialAutoencoder:
        """An objective whose critic is a perceptron over the model's latents and context."""
        return cls(
            MLPCritic(_latent_size(model), context=model.context, hidden=hidden).to(model.dtype), game, critic_steps
        )

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        critic = self.critic.parameters()
        return {"model": model.parameters(), "critic": critic, "guide": model.guide.parameters()}

    def check(self, model: GenerativeModel) -> None:
        super().check(model)
        learned = [name for name, site in _prior_sites(model).items() if site_log_prob(site).requires_grad]
        if learned:
            raise TypeError(
                f"expected a prior without parameters to train, got {learned}, which no player of this game moves; "
                "freeze it (prior.requires_grad_(False)), or use AdversarialVariationalBayes"
            )

    def forward(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        yield "model", -self._run(model, x, context)[0].mean()
        for _ in range(self.critic_steps):
            fake, real = self._draws(model, x, context)
            yield "critic", self.game.critic(self.critic(real, context), self.critic(fake, context))
        z = latent_rows(poutine.trace(model.guide).get_trace(x, context), len(x))
        yield "guide", self.game.generator(self.critic(z, context))

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        with torch.no_grad():
            seen, z, _ = self._run(model, x, context)
            return -(seen + self.critic(z, context)).mean()  # the best critic's score is log p(z) - log q(z)


class AdversarialVariationalBayes(_LatentGame):
    r"""The bound for a guide without a density: a critic estimates :math:`\log q(z \mid x) - \log p(z)`.

    .. math:: \text{critic: } -E_{q(z \mid x)} \log \sigma(T(x, z)) - E_{p(z)} \log(1 - \sigma(T(x, z))), \qquad
        \text{model: } E_{q(z \mid x)} \bigl[ T(x, z) - \log p(x \mid z) \bigr]

    The critic gives T's value; a prior with parameters has its gradient from :math:`-\log p(z)` at the draws.

    Only the logistic loss makes the best critic that ratio, so there is no choice of game. The guide is any
    module that draws its sites with gradients, such as noise through a network beside x.

    With adaptive contrast the critic is a :class:`~pyrodgm.guides.Contrast`, which takes a Gaussian with the guide's
    moments in the prior's place: a critic has less to tell apart, and latents outside the data plate are no
    obstacle. It takes an :class:`~pyrodgm.guides.ImplicitGuide`. Held-out scores are estimates either way, and no
    bounds where the critic lags behind.

    Args:
        critic: module (x and z side by side (B, D + Z), context (B, C) or None) -> scores (B,), or a ``Contrast``.
        critic_steps: critic steps for each step of model and guide.
        particles: draws of the guide for each row in the model's loss; more than one for a ``Contrast`` only.
    Raises: ValueError for critic_steps < 1 or particles < 1; TypeError if the guide is not reparameterised or does not
        suit the critic, or, without adaptive contrast, if a latent is masked.
    Source: Mescheder et al. (2017), arXiv:1701.04722, eq. 3.3 and 3.7, algorithm 1.
    Example:
        >>> from pyrodgm.guides import Sites
        >>> from pyrodgm.latent import VAE
        >>> vae, x = VAE.mlp(features=6, latent=2, hidden=[8]), torch.ones(4, 6)
        >>> [player for player, _ in AdversarialVariationalBayes.mlp(vae, [8])(vae, x)]
        ['critic', 'model']
        >>> vae.guide = ImplicitGuide(Sites(vae, (x,)))
        >>> [player for player, _ in AdversarialVariationalBayes.mlp(vae, [8], adaptive=True)(vae, x)]
        ['critic', 'model']
    """

    def __init__(self, critic: nn.Module, critic_steps: int = 1, particles: int = 1) -> None:
        super().__init__(critic, critic_steps)
        if particles < 1 or (particles > 1 and not isinstance(critic, Contrast)):
            raise ValueError(f"expected particles >= 1, and 1 unless the critic is a Contrast, got {particles}")
        self.game, self.particles = Minimax(), particles

    @classmethod
    def mlp(
        cls,
        model: GenerativeModel,
        hidden: Sequence[int] = (256, 256),
        adaptive: bool = False,
        critic_steps: int = 1,
        particles: int = 1,
    ) -> AdversarialVariationalBayes:
        """An objective whose critic is a perceptron over the model's event, latents and context.

        Args:
            model: to be trained.
            hidden: widths of the critic.
            adaptive: contrast with a Gaussian of the guide's moments, see :class:`~pyrodgm.guides.Contrast`.
            critic_steps, particles: as above.
        Raises: TypeError if adaptive and the guide is no ImplicitGuide.
        """
        critic: nn.Module
        if adaptive:
            if not isinstance(model.guide, ImplicitGuide):
                raise TypeError(_WANTED.format(type(model.guide).__name__))
            critic = Contrast(model.guide, hidden)
        else:
            critic = MLPCritic(model.event_shape.numel() + _latent_size(model), context=model.context, hidden=hidden)
        return cls(critic.to(model.dtype), critic_steps, particles)

    def check(self, model: GenerativeModel) -> None:
        super().check(model)
        guide = model.guide
        if isinstance(self.critic, Contrast):
            if not isinstance(guide, ImplicitGuide):
                raise TypeError(_WANTED.format(type(guide).__name__))
        elif isinstance(guide, ImplicitGuide) and guide.sites.global_size:
            names = ", ".join(repr(site.name) for site in guide.sites.global_sites)
            raise TypeError(
                f"expected latents of the rows alone, got {names} outside the data plate; set adaptive=True"
            )

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        return {"critic": self.critic.parameters(), "model": model.parameters()}

    def forward(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        for _ in range(self.critic_steps):
            yield "critic", self._critic_loss(model, x, context, n)
        yield "model", self._negative_bound(model, x, context, n)

    def _critic_loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None, n: int | None) -> Tensor:
        if isinstance(self.critic, Contrast):
            return self.critic.loss(cast(ImplicitGuide, model.guide), x, context, n=n)
        guide, prior = self._draws(model, x, context)
        return self.game.critic(self._score(x, guide, context), self._score(x, prior, context))

    def _score(self, x: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        return self.critic(torch.cat((x.flatten(1), z), -1), context)

    def _negative_bound(self, model: GenerativeModel, x: Tensor, context: Tensor | None, n: int | None) -> Tensor:
        if not isinstance(self.critic, Contrast):
            seen, z, prior = self._run(model, x, context)
            return (self._score(x, z, context) - seen - prior).mean()
        guide = self.critic.scored(cast(ImplicitGuide, model.guide))
        drawn = Latent.particle_trace(guide, self.particles, x, context, n)
        check_reparameterised(drawn)
        program = Latent.particle_trace(poutine.replay(model, trace=drawn), self.particles, x, context, n)
        rows = len(x) if n is None else n
        return (drawn.log_prob_sum() - program.log_prob_sum()) / (rows * self.particles)

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        with torch.no_grad():
            return self._negative_bound(model, x, context, n)


_WANTED = (
    "expected an ImplicitGuide for adaptive contrast, got {}; set model.guide = ImplicitGuide(Sites(model, (x,))), or "
    "leave adaptive out"
)


def _prior_sites(model: GenerativeModel) -> dict[str, Any]:
    """The latent sites of one draw of the program, which leaves the random state and its modules alone."""
    context = torch.zeros(1, model.context, dtype=model.dtype, device=model.device) if model.context else None
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        # a given x, and no value of it is looked at: not every likelihood can be sampled
        x = torch.zeros(1, *model.event_shape, dtype=model.dtype, device=model.device)
        with evaluating(model), torch.enable_grad():
            trace = poutine.trace(poutine.condition(model, data={"x": x})).get_trace(None, context, n=1)
    return {name: site for name, site in sample_sites(trace).items() if name != "x"}


def _latent_size(model: GenerativeModel) -> int:
    """Z, by one draw of the program."""
    with torch.no_grad():
        return sum(site["value"].numel() for site in _prior_sites(model).values())
