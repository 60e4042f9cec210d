"""KDE beside scikit-learn and SciPy, its kernels' integrals and draws, its bandwidths, and what it holds in memory."""

import math

import numpy as np
import pytest
import torch
from cases import assert_means_agree, mean_and_error
from scipy.integrate import quad
from scipy.stats import gaussian_kde
from sklearn.neighbors import KernelDensity
from torch.func import grad_and_value, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import pyrodgm
from pyrodgm.distributions import kernel_mixture
from pyrodgm.distributions.kernel_mixture import pair_log_sums
from pyrodgm.distributions.radial_kernels import KERNELS
from pyrodgm.tractable import KDE, RealNVP

DIMENSIONS = [1, 2, 3, 6]
kernels = pytest.mark.parametrize("kernel", KERNELS)
CONSTANT = torch.full((30, 1), 1e6 / 3, dtype=torch.float64)  # whose mean is rounded


def rows(n, features, seed=0):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(n):
    return torch.rand(n, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.1


def scikit_learn(x, at, kernel, bandwidth, weights=None):
    # One leaf: over several, its tree loses the digits of densities below 1e-16 of the largest.
    model = KernelDensity(bandwidth=bandwidth, kernel=kernel, leaf_size=len(x))
    return torch.from_numpy(model.fit(x.numpy(), sample_weight=weights).score_samples(at.numpy()))


def radial(kernel, features, of=lambda r: 1.0):
    """E of(|u|) under a kernel of D features, by quadrature over the radius."""
    k = KERNELS[kernel]
    sphere = 2 * math.pi ** (features / 2) / math.gamma(features / 2)

    def integrand(r):
        height = k.log_shape(torch.tensor(r * r, dtype=torch.float64)).exp().item()
        return of(r) * height * r ** (features - 1)

    end = {"gaussian": 12.0, "exponential": 80.0}.get(kernel, 1.0)
    return sphere * quad(integrand, 0, end, epsabs=0, epsrel=1e-10, limit=200)[0] / math.exp(k.log_normalizer(features))


# scikit-learn's cosine kernel does not integrate to 1 in even dimensions; the next test measures ours there.
@pytest.mark.parametrize(
    ("kernel", "features"), [(k, d) for k in KERNELS for d in DIMENSIONS if k != "cosine" or d % 2]
)
def test_density_is_scikit_learns(kernel, features):
    x, at = rows(200, features), 1.3 * rows(100, features, 1)
    for w in (None, weights(200)):
        found = KDE(x, kernel, bandwidth=0.8, metric="euclidean", weights=w).log_prob(at)
        expected = scikit_learn(x, at, kernel, 0.8, None if w is None else w.numpy())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@kernels
@pytest.mark.parametrize("features", DIMENSIONS)
def test_kernels_integrate_to_one(kernel, features):
    assert radial(kernel, features) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("features", [1, 2, 4])
@pytest.mark.parametrize("bandwidth", ["scott", "silverman", 0.3])
def test_density_is_scipys(features, bandwidth):
    x, at = rows(150, features) @ (torch.eye(features).double() + 0.5), rows(50, features, 1)
    for w in (None, weights(150)):
        reference = gaussian_kde(x.numpy().T, bandwidth, None if w is None else w.numpy())
        found = KDE(x, bandwidth=bandwidth, weights=w).log_prob(at)
        torch.testing.assert_close(found, torch.from_numpy(reference.logpdf(at.numpy().T)), rtol=0, atol=1e-6)


@kernels
@pytest.mark.parametrize("metric", ["euclidean", "seuclidean", "mahalanobis"])
def test_density_integrates_to_one_under_every_metric(kernel, metric):
    model = KDE(rows(5, 2) * torch.tensor([1.0, 0.3]), kernel, bandwidth=0.7, adaptive=True, metric=metric)
    line = torch.linspace(-15, 15, 1201, dtype=torch.float64)
    total = model.log_prob(torch.cartesian_prod(line, line)).exp().sum() * (line[1] - line[0]) ** 2
    # midpoints of cells of width 0.025: the tophat's edges are what they miss
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=0.03 if kernel == "tophat" else 2e-3)


@kernels
def test_metric_is_a_change_of_units(kernel):
    """Scaled features leave the standardised estimate where it is, mixed ones the whitened, but for the volume."""
    x, at = rows(60, 3), rows(40, 3, 1)
    for metric, mix in (("seuclidean", torch.tensor([3.0, 0.1, 7.0]).diag()), ("mahalanobis", rows(3, 3, 2))):
        mix = mix.double()
        plain = KDE(x, kernel, bandwidth=0.9, adaptive=True, metric=metric).log_prob(at)
        moved = KDE(x @ mix, kernel, bandwidth=0.9, adaptive=True, metric=metric).log_prob(at @ mix)
        torch.testing.assert_close(moved + torch.linalg.slogdet(mix)[1], plain)


@kernels
@pytest.mark.parametrize("features", [1, 2, 5])
def test_draws_of_a_kernel_have_its_radii(kernel, features):
    torch.manual_seed(0)
    u = KERNELS[kernel].draw(torch.Size((40_000, features)), torch.zeros(0, dtype=torch.float64))
    r = u.norm(dim=-1)
    # ends of the exponential's tail beyond 80 have mass e-30
    values = torch.stack((r, r.square(), torch.cos(3 * r)), -1)
    expected = [radial(kernel, features, of) for of in (lambda r: r, lambda r: r * r, lambda r: math.cos(3 * r))]
    assert_means_agree(*mean_and_error(values), torch.tensor(expected).double())
    assert_means_agree(*mean_and_error(u), torch.zeros(features).double())


@kernels
@pytest.mark.parametrize("adaptive", [False, True])
def test_draws_have_the_mixtures_moments(kernel, adaptive):
    """The mean is the rows'; the covariance is theirs and the kernel's, E h^2 times, in the metric's units."""
    x, w = rows(30, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.5]]).double(), weights(30)
    model = KDE(x, kernel, bandwidth=0.6, adaptive=adaptive, weights=w)
    torch.manual_seed(0)
    draws, w = model.sample(40_000), w / w.sum()
    mean = w @ x
    assert_means_agree(*mean_and_error(draws), mean)
    torch.testing.assert_close(model.condition().mean, mean)
    squares = ((draws - mean).unsqueeze(-1) * (draws - mean).unsqueeze(-2)).flatten(1)
    spread = radial(kernel, 2, lambda r: r * r) / 2 * (w @ model.bandwidths.square())
    metric = model.factor @ model.factor.T
    expected = ((x - mean).T * w) @ (x - mean) + spread * metric
    assert_means_agree(*mean_and_error(squares), expected.flatten())


@kernels
def test_blocks_change_nothing(kernel, monkeypatch):
    """Values, gradients and second derivatives are the same from many small blocks as from one."""
    model, x = KDE(rows(70, 3), kernel, bandwidth=0.9, adaptive=True), rows(40, 3, 1)

    def derivatives():
        at = x.clone().requires_grad_()
        log_prob = model.log_prob(at)
        reached = log_prob.isfinite()
        (first,) = torch.autograd.grad(log_prob[reached].sum(), at, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), at)[0] if first.requires_grad else torch.zeros_like(at)
        return log_prob.detach(), first.detach(), second

    whole = derivatives()
    monkeypatch.setattr(kernel_mixture, "_COLUMNS", 16)
    monkeypatch.setattr(kernel_mixture, "_BLOCK", 64)
    torch.testing.assert_close(derivatives(), whole)
    assert bool(whole[0].isfinite().any())


@kernels
def test_slopes_are_the_shapes_derivatives(kernel):
    squares = torch.linspace(0.01, 1.4, 50, dtype=torch.float64, requires_grad=True)
    shape = KERNELS[kernel].log_shape(squares)
    expected = torch.autograd.grad(shape[shape.isfinite()].sum(), squares)[0] if kernel != "tophat" else 0 * squares
    torch.testing.assert_close(KERNELS[kernel].slope(squares.detach()), expected.detach())


@kernels
def test_the_last_number_inside_the_support_is_finite(kernel):
    squares = torch.nextafter(torch.ones(()), torch.zeros(())).requires_grad_()
    shape = KERNELS[kernel].log_shape(squares)
    assert bool(shape.isfinite() & KERNELS[kernel].slope(squares.detach()).isfinite())
    if shape.requires_grad:
        shape.backward()
        assert bool(squares.grad.isfinite())


def test_functional_transforms_of_many_pairs(monkeypatch):
    """Chains of an MCMC kernel ask for vmap(grad): the same numbers as autograd's."""
    monkeypatch.setattr(kernel_mixture, "_COLUMNS", 16)
    monkeypatch.setattr(kernel_mixture, "_BLOCK", 32)
    model, x = KDE(rows(70, 3), "exponential"), rows(6, 3, 1)
    at = x.clone().requires_grad_()
    log_prob = model.log_prob(at)
    found = vmap(grad_and_value(lambda row: model.log_prob(row)))(x)
    torch.testing.assert_close(found, (torch.autograd.grad(log_prob.sum(), at)[0], log_prob.detach()))


@kernels
def test_gradient_is_that_of_the_plain_formula(kernel):
    x, at = rows(20, 2), (0.6 * rows(10, 2, 1)).requires_grad_()
    found = torch.autograd.grad(KDE(x, kernel, bandwidth=1.5, metric="euclidean").log_prob(at).sum(), at)[0]
    squares = (at.unsqueeze(1) - x).square().sum(-1) / 1.5**2
    shapes = {
        "gaussian": torch.exp(-squares / 2),
        "epanechnikov": (1 - squares).relu(),
        "tophat": (squares < 1) + 0 * squares,
        "exponential": torch.exp(-squares.sqrt()),
        "linear": (1 - squares.sqrt()).relu(),
        "cosine": torch.cos(math.pi / 2 * squares.sqrt().clamp(max=1)),
    }
    total = shapes[kernel].sum(-1)
    assert bool((total > 0).all())
    torch.testing.assert_close(found, torch.autograd.grad(total.log().sum(), at)[0])


def test_where_no_kernel_reaches_the_density_is_0_and_the_gradient_is_no_nan():
    at = torch.tensor([[0.0], [50.0]], dtype=torch.float64, requires_grad=True)
    log_prob = KDE(rows(20, 1), "epanechnikov", bandwidth=0.5).log_prob(at)
    assert log_prob.isfinite().tolist() == [True, False]
    log_prob.exp().sum().backward()
    assert bool(at.grad.isfinite().all())
    assert at.grad[1] == 0


def test_abramsons_bandwidths():
    """h_i is h over the root of the pilot density, so that their geometric mean under the weights is h."""
    x, w = rows(50, 2), weights(50)
    for given in (None, w):
        share = torch.full((50,), 1 / 50).double() if given is None else w / w.sum()
        model = KDE(x, "linear", bandwidth=0.8, adaptive=True, weights=given)
        pilot = KDE(x, "linear", bandwidth=0.8, weights=given).log_prob(x).exp()
        mean = torch.exp(share @ pilot.log())
        torch.testing.assert_close(model.bandwidths, 0.8 * (pilot / mean).rsqrt())
        at, units = rows(9, 2, 1), torch.linalg.inv(model.factor).T
        terms = share * (1 - ((at.unsqueeze(1) - x) @ units).norm(dim=-1) / model.bandwidths).relu()
        volume = model.bandwidths.square() * torch.linalg.det(model.factor) * (math.pi / 3)  # of a cone of height 1
        torch.testing.assert_close(model.log_prob(at).exp(), (terms / volume).sum(-1))


def test_left_out_likelihood_is_that_of_the_other_rows():
    x, w = rows(12, 2), weights(12)
    for metric in ("euclidean", "seuclidean"):
        model = KDE(x, "exponential", bandwidth=1.0, metric=metric, weights=w)
        scale = model.factor.diagonal()
        each = [
            scikit_learn(x[keep] / scale, x[i : i + 1] / scale, "exponential", 0.7, w[keep].numpy())
            for i in range(12)
            for keep in [torch.arange(12) != i]
        ]
        torch.testing.assert_close(model.leave_one_out(0.7), torch.stack(each).mean() - scale.log().sum())
        some = torch.tensor([3, 7])
        expected = torch.stack([each[3], each[7]]).mean() - scale.log().sum()
        torch.testing.assert_close(model.leave_one_out(0.7, some), expected)


@kernels
def test_cross_validation_finds_the_largest_left_out_likelihood(kernel):
    x = rows(80, 2)
    model = KDE(x, kernel, bandwidth="cv", metric="euclidean")
    chosen = model.bandwidths[0].item()
    best = max(model.leave_one_out(h).item() for h in np.geomspace(chosen / 4, chosen * 4, 60))
    # the search ends 0.001 from the top in log h; a kernel with edges has a likelihood that jumps
    assert model.leave_one_out(chosen).item() >= best - (0.02 if kernel == "tophat" else 1e-4)


def test_cross_validation_of_clusters_far_apart():
    """A cluster a thousand times further away leaves the best bandwidth, in units of the data, where it was."""
    found = []
    for gap in (1e2, 1e5):
        model = KDE(torch.cat((rows(150, 1), rows(150, 1, 1) + gap)), bandwidth="cv")
        found.append((model.bandwidths[0] * model.factor[0, 0]).item())
    # each search ends 0.001 from the top in log h
    assert found[1] == pytest.approx(found[0], rel=0.005)


def test_cross_validation_of_a_far_outlier_under_a_kernel_that_ends():
    """No bandwidth below its distance gives it any probability."""
    x = torch.cat((rows(50, 1), torch.full((1, 1), 1e5).double()))
    distance = 1e5 - x[:-1].max().item()
    assert KDE(x, "epanechnikov", bandwidth="cv", metric="euclidean").bandwidths[0].item() > distance


def test_cross_validation_of_many_rows_looks_at_some():
    many = KDE(rows(2500, 1), bandwidth="cv").bandwidths[0].item()
    # of normal data the best bandwidth is 1.06 n^(-1/5) (Silverman 1986, eq. 3.28), with a flat top about it
    assert many == pytest.approx(1.06 * 2500**-0.2, rel=0.35)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


def test_a_hundred_thousand_points_without_a_matrix_of_pairs():
    x, at = rows(100_000, 2).float(), rows(300, 2, 1).float()
    kept = 0

    def pack(t):
        nonlocal kept
        kept += t.numel()
        return t

    with Largest() as largest:
        model = KDE(x)
        log_prob = model.log_prob(at)
    assert largest.numel <= 4 * len(x) + kernel_mixture._BLOCK  # pairs would be 3e7
    at.requires_grad_()
    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        again = model.log_prob(at)
        gradient = torch.autograd.grad(again.sum(), at)[0]
    assert largest.numel <= 4 * len(x) + kernel_mixture._BLOCK
    assert kept < 10 * len(x)
    # float32: sums of 1e5 terms
    torch.testing.assert_close(again.detach(), log_prob, rtol=1e-5, atol=1e-5)
    some = at.detach()[:5].double().requires_grad_()
    torch.testing.assert_close(again[:5].double(), model.double().log_prob(some), rtol=0, atol=1e-4)
    exact = torch.autograd.grad(model.log_prob(some).sum(), some)[0]
    torch.testing.assert_close(gradient[:5].double(), exact, rtol=1e-3, atol=1e-3)


def test_far_from_the_origin_float32_keeps_its_digits():
    x, at = rows(500, 3) + 1000, rows(20, 3, 1) + 1000
    x, at = x.float(), at.float()  # both roundings of the data are the data
    found, exact = KDE(x, bandwidth=0.1).log_prob(at), KDE(x.double(), bandwidth=0.1).log_prob(at.double())
    # log-densities down to -2500 of rows that float32 has to 1e-7 of their units
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-3)


def test_a_checkpoint_of_more_rows_loads():
    small, large = KDE(rows(10, 2)), KDE(rows(25, 2, 1), adaptive=True)
    flow = RealNVP(2, 2, hidden=[4], base=small).double()
    small.load_state_dict(large.state_dict())
    at = rows(5, 2, 3)
    torch.testing.assert_close(small.log_prob(at), large.log_prob(at), rtol=0, atol=0)
    other = RealNVP(2, 2, hidden=[4], base=KDE(rows(7, 2))).double()
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other.log_prob(at), flow.log_prob(at), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="size mismatch for points"):
        small.load_state_dict(KDE(rows(10, 3)).state_dict())


def test_events_of_any_shape():
    x, at = rows(40, 6), rows(5, 6, 1)
    model = KDE(x.unflatten(1, (2, 3)))
    torch.testing.assert_close(model.log_prob(at.unflatten(1, (2, 3))), KDE(x).log_prob(at))
    assert model.sample(4).shape == (4, 2, 3)


def test_fit_reports_a_kdes_likelihood_and_trains_a_flow_around_it():
    x = rows(60, 2).float()
    kde = KDE(x)
    before = {k: v.clone() for k, v in kde.state_dict().items()}
    run = pyrodgm.fit(kde, x, epochs=1, batch_size=60, progress=False)
    assert run.history[-1]["loss"] == pytest.approx(-kde.log_prob(x).mean().item(), abs=1e-5)
    torch.manual_seed(0)
    flow = RealNVP(2, 2, hidden=[16], base=kde)
    target = torch.stack((2 * x[:, 0], x[:, 1] + x[:, 0] ** 2), -1)
    run = pyrodgm.fit(flow, target, steps=150, batch_size=60, lr=1e-2, progress=False)
    assert run.history[-1]["loss"] < run.history[0]["loss"] - 0.3
    torch.testing.assert_close(dict(flow.base.state_dict()), before, rtol=0, atol=0)


def test_the_pairs_of_no_rows():
    nothing = pair_log_sums(KERNELS["gaussian"], rows(0, 2), rows(3, 2), torch.zeros(3), torch.zeros(3))
    assert nothing.shape == (0,)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: KDE([[1.0]]), TypeError, r"torch\.Tensor of real numbers, got list; use torch\.as_tensor"),
        (lambda: KDE(torch.zeros(3, 2, dtype=torch.complex64)), TypeError, r"got torch\.complex64"),
        (lambda: KDE(torch.zeros(3)), ValueError, r"shape \(n, \*event\), got \(3,\)"),
        (lambda: KDE(torch.zeros(0, 2)), ValueError, "shape"),
        (lambda: KDE(torch.tensor([[1.0], [torch.nan]])), ValueError, "got row 1"),
        (lambda: KDE(rows(5, 2), "normal"), ValueError, "expected kernel to be one of 'gaussian'"),
        (lambda: KDE(rows(5, 2), metric="cosine"), ValueError, "expected metric to be one of 'euclidean'"),
        (lambda: KDE(rows(5, 2), bandwidth="best"), ValueError, '"scott"'),
        (lambda: KDE(rows(5, 2), bandwidth=0.0), ValueError, "bandwidth > 0, got 0.0"),
        (lambda: KDE(rows(5, 2)).leave_one_out(-1.0), ValueError, "bandwidth > 0"),
        (lambda: KDE(rows(1, 2), bandwidth="cv", metric="euclidean"), ValueError, "two rows"),
        (lambda: KDE(rows(20, 2).repeat(2, 1), bandwidth="cv"), ValueError, "repeated"),
        (lambda: KDE(1e9 * rows(20, 2), bandwidth="cv", metric="euclidean"), ValueError, "grows up to the bandwidth"),
        (lambda: KDE(rows(20, 1).expand(20, 2)), ValueError, "singular"),
        (lambda: KDE(torch.cat((rows(30, 1), CONSTANT), 1)), ValueError, "singular"),
        (lambda: KDE(torch.cat((rows(30, 1), CONSTANT), 1), metric="seuclidean"), ValueError, "singular"),
        (lambda: KDE(rows(2, 2)), ValueError, "singular"),
        (lambda: KDE(rows(5, 2), weights=torch.ones(4)), ValueError, "5 positive weights"),
        (lambda: KDE(rows(5, 2), weights=torch.zeros(5)), ValueError, "positive weights"),
    ],
)
def test_mistakes_are_named(build, error, match):
    with pytest.raises(error, match=match):
        build()
