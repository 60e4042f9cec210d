"""M2: its bounds against sums over every class and style, and against Pyro's enumeration."""

import math

import pyro.distributions as dist
import pytest
import torch
from cases import HIDDEN, MODELS, C, all_binary, assert_means_agree, contexts, grow, mean_and_error, ready
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import pyrodgm
from pyrodgm.diagnostics import decode, encode
from pyrodgm.latent import M2
from pyrodgm.objectives import ELBO, SemiSupervised
from pyrodgm.shapes import join_context
from pyrodgm.tractable import Parametric, StandardNormal

N = 6
LABELS = torch.eye(C).double()


def setting():
    """An M2, rows, and labels of which every third is unknown."""
    model = ready(MODELS["M2"], True)
    x = all_binary((5,))[torch.randperm(32, generator=torch.Generator().manual_seed(1))[:N]]
    return model, x, contexts(N, labels=True)


def binary_style():
    """An M2 whose style is two bits, so that every sum is exact; the prior of the style depends on the class."""
    torch.manual_seed(0)
    model = M2(
        classes=C,
        likelihood=Parametric(dist.Bernoulli, 4, context=2 + C, hidden=HIDDEN),
        classifier=nn.Linear(4, C),
        style=Parametric(dist.Bernoulli, 2, context=4 + C, hidden=HIDDEN),
        prior=Parametric(dist.Bernoulli, 2, context=C, hidden=HIDDEN),
    )
    return grow(model).double().eval()


def exact(model, x):
    """log p(y), log p(x, z | y), log q(y | x), log q(z | x, y): (K,), (K, 4, B), (B, K), (K, 4, B)."""
    z = all_binary((2,)).unsqueeze(1).expand(-1, len(x), -1)  # (4, B, 2)
    joint, style = [], []
    for y in LABELS:
        likelihood = model.likelihood.log_prob(x, join_context(z, y))
        joint.append(model.prior.log_prob(z, y.expand(*z.shape[:2], C)) + likelihood)
        style.append(model.guide.style.log_prob(z, join_context(x, y).expand(len(z), -1, -1)))
    classifier = model.guide.classifier(x).log_softmax(-1)
    return model.class_logits.log_softmax(-1), torch.stack(joint), classifier, torch.stack(style)


@torch.no_grad()
def test_bounds_are_the_sums_over_classes_and_styles():
    model, x = binary_style(), all_binary((4,))
    prior, joint, classifier, style = exact(model, x)
    given_class = (style.exp() * (joint - style)).sum(1).T  # (B, K)
    unknown = (classifier.exp() * (given_class + prior - classifier)).sum(-1)
    zeros = torch.zeros(len(x), C).double()
    draws = torch.stack([model.bounds(x, zeros, particles=50) for _ in range(100)])
    assert_means_agree(*mean_and_error(draws), unknown)
    assert bool((unknown < (joint.logsumexp(1).T + prior).logsumexp(-1)).all())
    for k, y in enumerate(LABELS):
        draws = torch.stack([model.bounds(x, y.expand(len(x), C), particles=50) for _ in range(100)])
        assert_means_agree(*mean_and_error(draws), given_class[:, k])


@torch.no_grad()
def test_weights_average_to_the_marginals():
    """With y and z drawn: p(x | y) where the label is given, p(x) where it is not."""
    model, x = binary_style(), all_binary((4,))[:5]
    prior, joint, _, _ = exact(model, x)
    found = model.log_weights(x, torch.zeros(5, C).double(), particles=20_000).exp()
    assert_means_agree(*mean_and_error(found), (joint.logsumexp(1).T + prior).logsumexp(-1).exp())
    found = model.log_weights(x, LABELS[1].expand(5, C), particles=20_000).exp()
    assert_means_agree(*mean_and_error(found), joint[1].logsumexp(0).exp())


@torch.no_grad()
def test_posterior_and_decode_sum_the_class_out():
    model, x = binary_style(), all_binary((4,))
    z = all_binary((2,))[torch.arange(16) % 4]
    prior, _, classifier, style = exact(model, x)
    at = torch.arange(16), torch.arange(16) % 4
    expected = (classifier + style[:, at[1], at[0]].T).logsumexp(-1)
    zeros = torch.zeros(16, C).double()
    torch.testing.assert_close(model.posterior(x, zeros).log_prob(z), expected)
    torch.testing.assert_close(model.posterior(x, LABELS[1].expand(16, C)).log_prob(z), style[1, at[1], at[0]])
    likelihood = torch.stack([model.likelihood.log_prob(x, join_context(z, y)) for y in LABELS], -1)
    of_class = (prior + torch.stack([model.prior.log_prob(z, y.expand(16, C)) for y in LABELS], -1)).log_softmax(-1)
    torch.testing.assert_close(model.decode(z, zeros).log_prob(x), (likelihood + of_class).logsumexp(-1))
    torch.testing.assert_close(model.decode(z, LABELS[1].expand(16, C)).log_prob(x), likelihood[:, 1])
    torch.testing.assert_close(encode(model, x, zeros), model.posterior(x, zeros).mean)
    torch.testing.assert_close(decode(model, z, LABELS[1].expand(16, C)), model.likelihood.condition(
        join_context(z, LABELS[1])).mean)  # fmt: skip


@pytest.mark.parametrize("labelled", [False, True])
def test_bounds_are_pyros_enumeration(labelled):
    """TraceEnum_ELBO, with y enumerated in the guide: the same expectation and its gradient, of both kinds of rows."""
    model, x, labels = setting()
    if not labelled:
        labels = torch.zeros_like(labels)
    guide = config_enumerate(model.guide, default="parallel")
    pyros = TraceEnum_ELBO(max_plate_nesting=1)
    parameters = list(model.parameters())

    def repeats(loss):
        found = []
        for _ in range(100):
            value = loss()
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            found.append(torch.cat([value.detach().reshape(1), *(g.flatten() for g in gradients)]))
        return mean_and_error(torch.stack(found))

    assert_means_agree(
        *repeats(lambda: -model.bounds(x, labels).sum()),
        *repeats(lambda: pyros.differentiable_loss(model, guide, x, labels)),
    )


@torch.no_grad()
def test_with_a_style_that_the_guide_knows_the_bound_is_pyros_to_rounding():
    """Where q(z | x, y) is the prior's, the KL is 0 and the decoder deaf to z, nothing is random."""
    model, x, _ = setting()
    for name, part in (("style", model.guide.style), ("likelihood", model.likelihood)):
        first = part.net[0] if name == "likelihood" else part.net[-1]
        (first.weight[:, :2] if name == "likelihood" else first.weight).zero_()
        if name == "style":
            first.bias.zero_()
    zeros = torch.zeros(N, C).double()
    pyros = TraceEnum_ELBO(max_plate_nesting=1).loss(model, config_enumerate(model.guide), x, zeros)
    assert -model.bounds(x, zeros).sum().item() == pytest.approx(pyros, rel=1e-9)
    # the default objective, which draws y, is the same in expectation
    drawn = torch.stack([N * ELBO().loss(model, x, zeros) for _ in range(300)])
    assert_means_agree(*mean_and_error(drawn), torch.tensor(pyros).double())


def test_loss_is_the_papers():
    """Labelled and unlabelled bounds, log p(y) and alpha's term, put together row by row on the same noise."""
    model, x, labels = setting()
    with torch.no_grad():
        torch.manual_seed(0)
        loss = SemiSupervised(7.0).loss(model, x, labels)
        torch.manual_seed(0)
        total = model.bounds(x, labels)
        for b, y in enumerate(labels):
            if y.any():
                k = int(y.argmax())
                total[b] += model.class_logits.log_softmax(-1)[k]
                total[b] += 7 * model.classify(x)[b, k].log()
        torch.testing.assert_close(loss, -total.mean())
        torch.manual_seed(0)
        held_out = SemiSupervised(7.0).held_out(model, x, labels)
        torch.manual_seed(0)
        torch.testing.assert_close(held_out, SemiSupervised(0.0).loss(model, x, labels))


def test_the_label_alone_trains_the_classifier_of_a_labelled_row():
    model, x, labels = setting()
    known = labels.any(-1)
    classifier = list(model.guide.classifier.parameters())

    def gradients(alpha):
        loss = SemiSupervised(alpha).loss(model, x[known], labels[known])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, classifier, materialize_grads=True)])

    assert bool((gradients(0.0) == 0).all())
    cross_entropy = nn.functional.cross_entropy(model.guide.classifier(x[known]), labels[known])
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(cross_entropy, classifier)])
    torch.testing.assert_close(gradients(3.0), 3 * expected)


def test_the_loss_traces():
    model, x, labels = setting()
    objective = SemiSupervised(2.0)
    with pyrodgm.core.pyro.validation_enabled(False):
        graph = make_fx(lambda x, labels: objective.loss(model, x, labels))(x, labels)
    torch.manual_seed(0)
    found = graph(x, labels)
    torch.manual_seed(0)
    torch.testing.assert_close(found, objective.loss(model, x, labels))


class ClassOnly(nn.Module):
    """A decoder that is deaf to the style, so that the model is a mixture and its best rule is known."""

    def __init__(self, features):
        super().__init__()
        self.linear = nn.Linear(2, features)

    def forward(self, z_and_y):
        return self.linear(z_and_y[..., 1:])


def test_four_labels_and_unlabelled_rows_come_to_the_best_rule():
    """Two clusters of binary rows, four labels: the classes of the unlabelled rows are found."""
    torch.manual_seed(0)
    truth = torch.arange(200) % 2
    x = (torch.rand(200, 12) < torch.where(truth[:, None] == 1, 0.75, 0.25)).float()
    labels = torch.zeros(200, 2)
    labels[:4] = nn.functional.one_hot(truth[:4], 2).float()
    likelihood = Parametric(dist.Bernoulli, 12, context=1 + 2, net=ClassOnly(12))
    model = M2(2, likelihood, nn.Linear(12, 2), Parametric(dist.Normal, 1, context=12 + 2))
    pyrodgm.fit(model, (x, labels), SemiSupervised(5.0), epochs=60, batch_size=50, lr=0.02, progress=False)
    right = (model.classify(x).argmax(-1) == truth).double().mean().item()
    # the best rule counts the ones of 12: it errs with probability P(Binomial(12, 0.25) > 6) + P(= 6) / 2
    p = [math.comb(12, k) * 0.25**k * 0.75 ** (12 - k) for k in range(13)]
    best = 1 - sum(p[7:]) - p[6] / 2
    assert right > best - 5 * math.sqrt(best * (1 - best) / 200) - 0.02  # 5 standard errors, and 2 % for the fit


def test_mistakes_are_named():
    model, x, labels = setting()
    with pytest.raises(ValueError, match=r"one-hot, or all zeros where unknown.* in row 1"):
        model(x, torch.where(torch.arange(N)[:, None] == 1, 0.5, labels))
    with pytest.raises(ValueError, match="classes >= 2"):
        M2.mlp(4, 1)
    style, likelihood = Parametric(dist.Normal, 2, context=4 + C), Parametric(dist.Bernoulli, 4, context=2 + C)
    with pytest.raises(ValueError, match="expected a prior over"):
        M2(C, likelihood, nn.Linear(4, C), style, StandardNormal(3))
    with pytest.raises(ValueError, match="expected a likelihood with context=4"):
        M2(C, Parametric(dist.Bernoulli, 4, context=2), nn.Linear(4, C), style)
    with pytest.raises(ValueError, match="expected a style with context=6"):
        M2(C, likelihood, nn.Linear(4, C), Parametric(dist.Normal, 2, context=4))
    with pytest.raises(TypeError, match="style with rsample"):
        SemiSupervised(1.0).loss(binary_style(), all_binary((4,)), torch.zeros(16, C).double())
    with pytest.raises(ValueError, match="alpha >= 0"):
        SemiSupervised(-1.0)
    with pytest.raises(ValueError, match="particles >= 1"):
        SemiSupervised(1.0, particles=0)
    with pytest.raises(ValueError, match="reads"):
        model.guide()


@torch.no_grad()
def test_the_objectives_particles_are_those_of_the_bounds():
    model, x, labels = setting()
    torch.manual_seed(3)
    found = SemiSupervised(0.0, particles=7).loss(model, x, labels)
    torch.manual_seed(3)
    of_class = (labels * model.class_logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(found, -(model.bounds(x, labels, particles=7) + of_class).mean())
