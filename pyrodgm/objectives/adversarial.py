"""The adversarial game between a generator and a critic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from pyrodgm.core import GenerativeModel, Implicit
from pyrodgm.nets.mlp import MLPCritic
from pyrodgm.objectives.base import Objective, fusable

__all__ = ["Adversarial", "Game", "Minimax", "NonSaturating", "game_optimizer"]


class Game(ABC):
    """Losses of the two players from the critic's scores (B,) of real and generated rows."""

    @abstractmethod
    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        """What the critic minimises, ()."""

    @abstractmethod
    def generator(self, fake: Tensor) -> Tensor:
        """What the generator minimises, ()."""


class Minimax(Game):
    r"""The zero-sum game :math:`V = E \log D(x) + E \log(1 - D(G(z)))` with :math:`D = \sigma(\text{score})`.

    At the optimum D = 1/2 everywhere and V = -2 log 2; with the best critic V = -2 log 2 + 2 JS(p, q).

    Source: Goodfellow et al. (2014), arXiv:1406.2661, eq. 1.
    Example:
        >>> Minimax().value(torch.zeros(3), torch.zeros(3))
        tensor(-1.3863)
    """

    @staticmethod
    def value(real: Tensor, fake: Tensor) -> Tensor:
        """V in nats, from scores (B,)."""
        return F.logsigmoid(real).mean() + F.logsigmoid(-fake).mean()

    def critic(self, real: Tensor, fake: Tensor) -> Tensor:
        return -self.value(real, fake)

    def generator(self, fake: Tensor) -> Tensor:
        return F.logsigmoid(-fake).mean()


class NonSaturating(Minimax):
    r"""The same critic; the generator maximises :math:`E \log D(G(z))`, whose gradient does not vanish early.

    Source: Goodfellow et al. (2014), arXiv:1406.2661, section 3.
    Example:
        >>> NonSaturating().generator(torch.zeros(3))
        tensor(0.6931)
    """

    def generator(self, fake: Tensor) -> Tensor:
        return -F.logsigmoid(fake).mean()


class Adversarial(Objective):
    """Train an implicit model against a critic, which the objective owns.

    The losses come lazily: each critic step is taken before the generator's loss is computed.

    Args:
        critic: module (x (B, *event), context (B, C) or None) -> scores (B,).
        game: the two losses; default :class:`NonSaturating`.
        critic_steps: critic steps for each generator step.
    Raises: ValueError for critic_steps < 1; TypeError from ``check`` for a model of another family.
    Source: Goodfellow et al. (2014), arXiv:1406.2661, algorithm 1.
    Example:
        >>> from pyrodgm.implicit import GAN
        >>> gan = GAN.mlp(features=2, latent=2, hidden=[8])
        >>> [player for player, _ in Adversarial.mlp(gan)(gan, torch.randn(4, 2))]
        ['critic', 'generator']
    """

    held_out_name = "energy distance"

    def __init__(self, critic: nn.Module, game: Game | None = None, critic_steps: int = 1) -> None:
        super().__init__()
        if critic_steps < 1:
            raise ValueError(f"expected critic_steps >= 1, got {critic_steps}")
        self.critic = critic
        self.game = NonSaturating() if game is None else game
        self.critic_steps = critic_steps

    @classmethod
    def mlp(
        cls,
        model: GenerativeModel,
        hidden: Sequence[int] = (256, 256),
        game: Game | None = None,
        critic_steps: int = 1,
    ) -> Adversarial:
        """An objective whose critic is a perceptron over the model's event and context."""
        critic = MLPCritic(model.event_shape.numel(), context=model.context, hidden=hidden).to(model.dtype)
        return cls(critic, game, critic_steps)

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Implicit):
            raise TypeError(f"expected an Implicit model (its draws carry gradients), got {type(model).__name__}")

    def players(self, model: GenerativeModel) -> dict[str, Iterable[Parameter]]:
        return {"critic": self.critic.parameters(), "generator": model.parameters()}

    def forward(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        for _ in range(self.critic_steps):
            with torch.no_grad():
                fake = model(context=context, n=len(x))
            yield "critic", self.game.critic(self.critic(x, context), self.critic(fake, context))
        yield "generator", self.game.generator(self.critic(model(context=context, n=len(x)), context))

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        from pyrodgm.evaluation.two_sample import energy_distance

        if len(x) == 1:  # the last batch of an epoch: twice the same row, since a distance wants two
            x, context = x.expand(2, *x.shape[1:]), None if context is None else context.expand(2, -1)
        fake = model.sample(len(x)) if context is None else model.sample(context=context)
        return energy_distance(x.flatten(1), fake.flatten(1))

    def optimizer(self, player: str, parameters: list[Parameter], lr: float) -> torch.optim.Optimizer:
        return game_optimizer(parameters, lr)


def game_optimizer(parameters: list[Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam for a player of a game: with momentum 0.5, which keeps it from oscillating.

    Source: Radford et al. (2016), arXiv:1511.06434, section 4.
    """
    return torch.optim.Adam(parameters, lr=lr, betas=(0.5, 0.999), fused=fusable(parameters))
