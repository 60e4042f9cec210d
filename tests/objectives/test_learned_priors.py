"""Priors with parameters: every objective trains them or says that it cannot, and masked latents weigh nothing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from cases import HIDDEN, MODELS, OBJECTIVES, assert_gradients_agree, grow, ready, rows
from pyro import poutine
from test_contracts_latent import exact_marginal, linear_vae
from torch import nn
from torch.distributions import kl_divergence

from pyrodgm.core import Latent, data_plate
from pyrodgm.objectives import (
    ELBO,
    AdversarialAutoencoder,
    AdversarialVariationalBayes,
    BetaTCVAE,
    FreeBits,
    InfoVAE,
    VariationalEM,
)
from pyrodgm.tractable import Parametric

PRIORS = {
    "flow": "VAE of flows",
    "MADE": "VAE with MADE prior",
    "mixture": "VAE with mixture prior",
    "VampPrior": "VAE with VampPrior",
}
NO_RSAMPLE = {"MADE", "mixture", "VampPrior"}
# who says that it cannot, and of which priors; the VAE of flows has a flow as its guide too
REFUSED = {
    "AdversarialAutoencoder": set(PRIORS),
    "InfoVAE": NO_RSAMPLE,
    "ELBO tempered": set(PRIORS),  # free bits of single dimensions
    "BetaTCVAE": {"flow"},
}
GENERAL = [name for name, case in OBJECTIVES.items() if case.general and MODELS[case.model].build().family == "latent"]


def checked_losses(objective, model, x):
    objective.check(model)
    return list(objective(model, x))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("name", GENERAL)
def test_an_objective_trains_the_prior_or_says_that_it_cannot(name, prior):
    """What the prior has of its own: the components of a VampPrior are the guide's, whose player moves them."""
    vae = ready(MODELS[PRIORS[prior]])
    x = rows(MODELS[PRIORS[prior]], vae, 6)
    of_guide = {id(p) for p in vae.guide.parameters()}
    own = {id(p): key for key, p in vae.prior.named_parameters() if id(p) not in of_guide}
    assert own
    objective = OBJECTIVES[name].build(vae).double()
    if prior in REFUSED.get(name, ()):
        with pytest.raises(TypeError, match=r"^expected "):
            checked_losses(objective, vae, x)
        return
    players = {player: list(parameters) for player, parameters in objective.players(vae).items()}
    still = set(own)
    for player, loss in checked_losses(objective, vae, x):
        gradients = torch.autograd.grad(loss, players[player], retain_graph=True, materialize_grads=True)
        still -= {id(p) for p, g in zip(players[player], gradients, strict=True) if bool((g != 0).any())}
    assert not [own[i] for i in still], "these parameters of the prior have no gradient"


def test_variational_em_without_a_guides_player_trains_the_components_of_a_vamp_prior():
    """They are the guide's too, which has no step of its own there; where it has one, they are its player's alone."""
    vae = ready(MODELS["VAE with VampPrior"])
    x = rows(MODELS["VAE with VampPrior"], vae, 6)
    shared = list(vae.prior.posterior.parameters())
    assert {id(p) for p in shared} == {id(p) for p in vae.guide.parameters()}
    objective = VariationalEM(steps=2).double()
    own = list(objective.players(vae)["model"])
    assert len(own) == len({id(p) for p in own}) == len(list(vae.parameters()))
    ((_, loss),) = objective(vae, x)
    for gradient in torch.autograd.grad(loss, shared):
        assert bool((gradient != 0).any())
    amortized = {k: {id(p) for p in ps} for k, ps in VariationalEM(amortized=True).players(vae).items()}
    assert not amortized["guide"] & amortized["model"]
    assert amortized["guide"] | amortized["model"] == {id(p) for p in vae.parameters()}
    plain = ready(MODELS["VAE"])
    of_guide = {id(p) for p in plain.guide.parameters()}
    assert not of_guide & {id(p) for p in VariationalEM().players(plain)["model"]}


def check_the_priors_gradient_in_the_game():
    """Of the model's loss: -E_q log p(z) in the prior's parameters, in closed form for two Gaussians, and no other."""
    vae, x = linear_vae(optimal=False), exact_marginal().sample((6,))
    vae.prior = Parametric(dist.Normal, 2).double()
    loc, log_scale = vae.prior.free.detach().copy_(torch.tensor([0.4, -0.3, 0.2, -0.5])).reshape(2, 2)
    q = vae.posterior(x).base_dist
    gap = (q.loc - loc).detach()
    squares = (gap.square() + q.scale.square().detach()).mean(0) * (-2 * log_scale).exp()
    exact = torch.cat((-gap.mean(0) * (-2 * log_scale).exp(), 1 - squares))
    torch.manual_seed(1)
    objective, found = AdversarialVariationalBayes.mlp(vae, HIDDEN), []
    for _ in range(60):
        loss = dict(objective(vae, x.repeat(40, 1)))["model"]
        found.append(torch.autograd.grad(loss, vae.prior.free)[0])
    assert_gradients_agree(torch.stack(found), exact)


def test_the_priors_gradient_in_the_game():
    check_the_priors_gradient_in_the_game()


MASK = torch.tensor([True, False, True, True, False, True])


class Masked(Latent):
    """z ~ N(0, I), x ~ N(z, I) in the rows that count; in the others they have means of their own."""

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.posterior = Parametric(dist.Normal, 2, context=2, hidden=HIDDEN)

        def forward(self, x=None, context=None, *, n=None):
            with data_plate(x, context, n), poutine.mask(mask=MASK):
                return pyro.sample("z", self.posterior.condition(x))

    def __init__(self, of_x, of_z):
        super().__init__((2,))
        self.guide = self.Guide()
        for name, mean in (("of_x", of_x), ("of_z", of_z)):
            self.register_buffer(name, torch.where(MASK, 0.0, mean).unsqueeze(-1).expand(-1, 2))

    def forward(self, x=None, context=None, *, n=None):
        rows = (n or 1) if x is None else len(x)
        with data_plate(x, context, n), poutine.mask(mask=MASK[:rows]):
            z = pyro.sample("z", dist.Normal(self.of_z[:rows], 1.0, validate_args=False).to_event(1))
            return pyro.sample("x", dist.Normal(self.of_x[:rows] + z, 1.0, validate_args=False).to_event(1), obs=x)


def masked(of_x, of_z=0.0):
    torch.manual_seed(0)
    return grow(Masked(of_x, of_z)).double(), torch.randn(6, 2).double()


def expected_bound(model, x, nats=None):
    """Of the rows that count, over all: one draw, or with free bits the closed KL of each dimension."""
    q = model.guide.posterior.condition(x)
    torch.manual_seed(5)
    z = q.rsample()
    normal = dist.Normal(torch.zeros_like(z), 1.0)
    seen = dist.Normal(z, 1.0).log_prob(x).sum(-1)[MASK].sum()
    if nats is None:
        return (q.log_prob(z) - normal.log_prob(z).sum(-1))[MASK].sum() / 6 - seen / 6
    kl = kl_divergence(q.base_dist, normal)[MASK]
    return len(kl) * kl.mean(0).clamp(min=nats).sum() / 6 - seen / 6


def check_what_is_masked_has_no_weight(objective, nats=None):
    """Nor in the gradient; and where no finite number stands for the masked rows, the value is what it was."""
    model, x = masked(50.0, 50.0)
    expected, parameters = expected_bound(model, x, nats), list(model.parameters())
    torch.manual_seed(5)
    loss = objective.loss(model, x)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), wanted)
    for elsewhere in (torch.inf, torch.nan):
        model, x = masked(elsewhere, elsewhere)
        torch.manual_seed(5)
        torch.testing.assert_close(objective.loss(model, x), expected)


@pytest.mark.parametrize(
    ("objective", "nats"),
    [(ELBO(), None), (ELBO(analytic_kl=False), None), (ELBO(free_bits=FreeBits(0.6)), 0.6)],
    ids=["plain", "by draws", "free bits"],
)
def test_what_is_masked_has_no_weight(objective, nats):
    check_what_is_masked_has_no_weight(objective, nats)


@pytest.mark.parametrize(
    "build",
    [
        lambda m: BetaTCVAE(),
        lambda m: InfoVAE(),
        lambda m: AdversarialVariationalBayes.mlp(m, HIDDEN),
        lambda m: AdversarialAutoencoder.mlp(m, HIDDEN),
    ],
    ids=["BetaTCVAE", "InfoVAE", "AdversarialVariationalBayes", "AdversarialAutoencoder"],
)
def test_masked_latents_are_refused_where_rows_are_compared(build):
    model, x = masked(0.0)
    with pytest.raises(TypeError, match=r"without a mask for .* got the masked \['z'\]"):
        list(build(model)(model, x))
