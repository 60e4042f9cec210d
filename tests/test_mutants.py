"""Planted bugs: each must make a contract check fail, and without it the check passes.

A mutant rewrites one piece of one function's source; where the piece is gone, the test says so, and the
mutant has to follow the code.
"""

import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import test_bounds as bounds
import test_contracts_bijector as bijector
import test_contracts_energy as energy
import test_contracts_implicit as implicit
import test_contracts_latent as latent
import test_contracts_model as model
import test_contracts_tractable as tractable
import test_contrastive as contrastive
import test_dbm as deep_machines
import test_dbn as deep_beliefs
import test_gap as gaps
import test_guides_exact as guides
import test_implicit as implicit_guides
import test_incremental as increments
import test_latent_measures as measures
import test_latent_players as players
import test_learned_priors as priors
import test_low_rank as low_ranks
import test_meads as meads_tests
import test_minibatch_programs as subsamples
import test_neural as neural_energies
import test_noise_contrastive as contrasts
import test_rbm as restricted_machines
import test_replay as replays
import test_resampled as refusals
import test_reverse_kl as reverse
import test_score as scores
import test_sequential_way as sequential
import test_splines as splines
import test_target_estimate as targets
import test_visible_units as visibles
import test_vqvae2 as levels
import torch

from pyrodgm import core
from pyrodgm.bijectors import (
    RationalQuadraticSpline,
    coupling,
    linear,
    masked_coupling,
    multiscale,
    normalization,
    orthogonal,
    pixels,
    planar,
    spline_bins,
    spline_rational,
    univariate,
)
from pyrodgm.distributions import autoregressive, conditionals, flow, kernel_mixture, normal, tokens, unnormalised
from pyrodgm.energy import bipartite, dbm, dbn, gap, normalised, rbm, tilted, twins, visible_units
from pyrodgm.evaluation import target
from pyrodgm.guides import Contrast, FullCovariance, SemiAmortized, contrast, local, program
from pyrodgm.implicit import GAN
from pyrodgm.kernels import MALA, MEADS, LowRank, RandomWalk, low_rank, meads, metric
from pyrodgm.latent import code_pair, completion
from pyrodgm.nets import incremental, incremental_solve, masked
from pyrodgm.objectives import (
    ELBO,
    Adversarial,
    AdversarialVariationalBayes,
    BetaTCVAE,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    FreeBits,
    ImportanceWeighted,
    MeanFieldContrastive,
    Minimax,
    NoiseContrastive,
    ReplayDivergence,
    ReverseKL,
    ReweightedWakeSleep,
    ScoreMatching,
    SemiSupervised,
    SlicedScoreMatching,
    UpDown,
    elbo,
    infovae,
    latent_game,
    wake_sleep,
)
from pyrodgm.objectives.partition import PartitionMemory
from pyrodgm.tractable import Parametric, resampled


@dataclass(frozen=True)
class Mutant:
    """``old`` becomes ``new`` in the source of ``owner.name``; then ``check(*arguments)`` raises ``caught_by``."""

    owner: Any
    name: str
    old: str
    new: str
    check: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    caught_by: type[Exception] = AssertionError

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        original = inspect.getattr_static(self.owner, self.name)
        original = inspect.unwrap(getattr(original, "fget", original))
        source = textwrap.dedent(inspect.getsource(original))
        assert self.old in source, f"{self.name} has no {self.old!r} any more: let the mutant follow the code"
        module = sys.modules[original.__module__]
        before = dict(vars(module))
        exec(compile(source.replace(self.old, self.new), f"<mutant of {self.name}>", "exec"), vars(module))
        planted = vars(module)[self.name]
        if self.name in before:
            vars(module)[self.name] = before[self.name]
        else:
            del vars(module)[self.name]
        patch.setattr(self.owner, self.name, planted)


MUTANTS = {
    # bijectors
    "sign of ladj": Mutant(
        univariate.ScaleShift, "call_and_ladj", ", log_scale", ", -log_scale",
        bijector.check_ladj, ("AffineCoupling",)),
    "ladj misses a term": Mutant(
        coupling._CouplingTransform, "call_and_ladj", "ladj.sum(-1)", "ladj[..., 1:].sum(-1)",
        bijector.check_ladj, ("AffineCoupling",)),
    "ladj of the wrong direction": Mutant(
        coupling._CouplingTransform, "inverse_and_ladj", "ladj.sum(-1)", "-ladj.sum(-1)",
        bijector.check_round_trip, ("AffineCoupling",)),
    "inverse goes further": Mutant(
        univariate.Shift, "inverse_and_ladj", "y - raw", "y + raw",
        bijector.check_round_trip, ("AdditiveCoupling",)),
    "a convolution counts one place": Mutant(
        linear._ConvolutionTransform, "_ladj", " * x.shape[-2:].numel()", "",
        bijector.check_ladj, ("LULinear image",)),
    "a convolution's inverse forgets the permutation": Mutant(
        linear._MatrixTransform, "inverse_weight", "eye[self.order.argsort()]", "eye",
        bijector.check_round_trip, ("LULinear image",)),
    "a masked coupling sees what it moves": Mutant(
        masked_coupling._MaskedTransform, "_raw", "torch.where(c.mask, x, 0.0)", "x",
        bijector.check_round_trip, ("MaskedCoupling image",)),
    "a split loses the ladj": Mutant(
        multiscale._SplitTransform, "_apply", "-3), ladj", "-3), 0 * ladj",
        bijector.check_ladj, ("Split",)),
    "the margin of pixels left out of ladj": Mutant(
        pixels._PixelsTransform, "_ladj", "steep.sum((-3, -2, -1)) - ", "steep.sum((-3, -2, -1)) - 0 * ",
        bijector.check_ladj, ("Pixels",)),
    "coupling sees what it moves": Mutant(
        coupling._CouplingTransform, "_join", "(moved, kept) if self.flip", "(kept, moved) if self.flip",
        bijector.check_round_trip, ("AffineCoupling odd flipped",)),
    "triangular factors whose ladj forgets the context": Mutant(
        linear.LULinear, "condition", "log_diagonal.sum(-1)", "self.log_diagonal.sum(-1)",
        bijector.check_ladj, ("LULinear image", True)),
    "reflections that go back in the same order": Mutant(
        orthogonal._Reflections, "turn", "self.factor.mT if back", "self.factor.triu() if back",
        bijector.check_round_trip, ("Householder", True)),
    "a determinant whose factors do not hear of it": Mutant(
        linear.LULinear, "condition", "log_diagonal.sum(-1), shift", "log_diagonal.sum(-1).detach(), shift",
        bijector.check_gradients_are_slopes, ("LULinear",)),
    "a planar map's ladj that stands still": Mutant(
        planar._PlanarTransform, "call_and_ladj", "self._ladj(t)", "self._ladj(t.detach())",
        bijector.check_gradients_are_slopes, ("Planar", True)),
    "a radial map's ladj that stands still": Mutant(
        planar._RadialTransform, "inverse_and_ladj", "self._ladj(r,", "self._ladj(r.detach(),",
        bijector.check_gradients_are_slopes, ("Radial", False, "inverse_and_ladj")),
    "a batch norm's ladj that stands still": Mutant(
        normalization._BatchNormTransform, "inverse_and_ladj", "self._ladj(spread, y)",
        "self._ladj(spread.detach(), y)",
        bijector.check_gradients_are_slopes, ("BatchNorm", False, "inverse_and_ladj")),
    "a sequential way that its context does not hear of": Mutant(
        incremental_solve.IncrementalSolve, "gradients", "part = delta.T @ weight", "part = 0 * (delta.T @ weight)",
        bijector.check_gradients_are_slopes, ("Autoregressive", True, "inverse_and_ladj")),
    "a chunk that never reaches the features before it": Mutant(
        incremental_solve.IncrementalSolve, "back", "self.ends[level][first]", "0",
        sequential.check_gradients_across_chunks, ("inverse_and_ladj",)),
    "a gradient at weights that the mask hides": Mutant(
        incremental_solve, "weight_gradient", "(into.t() @ x).mul_(mask)", "into.t() @ x",
        sequential.check_gradients_are_autograds, ([9, 14, 11], torch.nn.SiLU, 0)),
    "actnorm ignores its context": Mutant(
        normalization._Diagonal, "_numbers", "self.net(context)", "self.net(0 * context)",
        bijector.check_context_changes_the_map, ("ActNorm",)),
    "coupling ignores its context": Mutant(
        coupling._CouplingTransform, "_raw", "self.context,", "self.context * 0,",
        bijector.check_context_changes_the_map, ("AffineCoupling",)),
    "a curve that goes up where it goes down": Mutant(
        spline_rational._Spline, "backward", "to_y * slope + l_xi", "to_y * slope - l_xi",
        splines.check_gradients, (RationalQuadraticSpline(3), False)),
    "an inverse that forgets the implicit function": Mutant(
        spline_rational._Spline, "backward", "-(to_xi + l_xi) / slope", "-to_xi / slope",
        splines.check_gradients, (RationalQuadraticSpline(3), True)),
    "bins whose widths need not sum to one": Mutant(
        spline_rational, "bin_gradient", "rest = -mean", "rest = 0 * mean",
        splines.check_gradients, (RationalQuadraticSpline(3), False)),
    "a bin's other knot": Mutant(
        spline_bins, "_knots", "(index - 1, index)", "(index, index)",
        splines.check_slopes_are_continuous, (RationalQuadraticSpline(5),)),
    # tractable
    "density without its Jacobian": Mutant(
        normalization._DiagonalTransform, "inverse_and_ladj", "-self._ladj(y)", "0 * self._ladj(y)",
        tractable.check_total_is_one, ("Flow",)),
    "adaptive kernels of one height": Mutant(
        kernel_mixture._Pairs, "__init__", "features * log_bandwidths", "features * log_bandwidths.mean()",
        tractable.check_total_is_one, ("KDE adaptive",)),
    "draws of another bandwidth": Mutant(
        kernel_mixture.KernelMixture, "rsample", "u * self._log_bandwidths", "1.3 * u * self._log_bandwidths",
        tractable.check_samples_have_the_density, ("KDE",)),
    "wrong constant of the normal": Mutant(
        normal.StandardNormalDistribution, "log_prob", "constant - 0.5 * squares", "constant - squares",
        tractable.check_total_is_one, ("StandardNormal",)),
    "wrong scale in sampling": Mutant(
        conditionals.GaussianMixtureConditional, "sample", ".exp() * noise", ".exp() * 1.2 * noise",
        tractable.check_samples_have_the_density, ("MADE mixture",)),
    "wrong component in sampling": Mutant(
        conditionals.GaussianMixtureConditional, "sample", "(logits + gumbel)", "logits",
        tractable.check_samples_have_the_density, ("MADE mixture",)),
    "samples by another flow": Mutant(
        flow.FlowDistribution, "sample", "self.transforms:", "self.transforms[1:]:",
        tractable.check_samples_have_the_density, ("RealNVP",)),
    "mixture of orders without - log M": Mutant(
        autoregressive.MixtureOfOrders, "log_prob", "- math.log(len(self.members))", "",
        tractable.check_total_is_one, ("MADE masks",)),
    "one order in sampling": Mutant(
        autoregressive.MixtureOfOrders, "sample", "torch.randint(len(self.members)", "torch.randint(1",
        tractable.check_samples_have_the_density, ("MADE masks",)),
    "padding that is not certain": Mutant(
        tokens.TokenSequences, "_score", "torch.where(previous == self.end, certain, log_probs)", "log_probs",
        tractable.check_total_is_one, ("Recurrent",)),
    "a word that sees itself": Mutant(
        tokens.TokenSequences, "_score", "F.pad(tokens[:, :-1], (1, 0), value=nothing)", "tokens",
        tractable.check_total_is_one, ("Recurrent GRU",)),
    "states forgotten in sampling": Mutant(
        tokens.TokenSequences, "_draw", "context, states)", "context, None)",
        tractable.check_samples_have_the_density, ("Recurrent GRU",)),
    "words after the end": Mutant(
        tokens.TokenSequences, "_draw", "torch.where(done, self.end, token)", "token",
        tractable.check_samples_have_the_density, ("Recurrent",), ValueError),
    "leaking mask, seen by autodiff": Mutant(
        masked.MaskedMLP, "_make_masks", "last > ", "last >= ",
        tractable.check_autoregressive, ("MADE deep",)),
    "leaking mask, seen by the total": Mutant(
        masked.MaskedMLP, "_make_masks", "last > ", "last >= ",
        tractable.check_total_is_one, ("MADE",)),
    "a code's block given to other codes": Mutant(
        masked.MaskedMLP, "_make_masks", "ranks.repeat_interleave(self.categories or 1)",
        "ranks.repeat(self.categories or 1)",
        tractable.check_autoregressive, ("MADE categorical",)),
    "incremental pass misses a unit": Mutant(
        incremental.IncrementalPass, "parameters", "weights[at], under", "weights[at][:, 1:], under[1:]",
        tractable.check_incremental_pass, ("MADE",)),
    "a chunk pushed to one unit too few": Mutant(
        incremental.IncrementalPass, "_push", "self.ends[level + 1][first]", "self.ends[level + 1][first] + 1",
        increments.check_across_chunks),
    "a chunk pushed twice": Mutant(
        incremental.IncrementalPass, "set", "self._push(i + 1)", "self._push(i + 1); self._push(i + 1)",
        increments.check_across_chunks),
    "an order kept beyond its end": Mutant(
        masked.MaskedMLP, "_set_masks", "self.plans: dict[int, Any] = {}", "self.plans = getattr(self, 'plans', {})",
        increments.check_follows_the_degrees_that_are_loaded),
    "one try too many": Mutant(
        resampled._ResampledDistribution, "log_prob", "(self.model.tries - 1)", "self.model.tries",
        refusals.check_two_tries),
    "stale memory": Mutant(
        flow.FlowDistribution, "_stamp", "return _steps() + y._version + sum(", "return 0 * sum(",
        tractable.check_memory_ends_with_a_change, ("RealNVP",)),
    "memory cut from the graph": Mutant(
        flow.FlowDistribution, "rsample", "(y, log_prob,", "(y, log_prob.detach().requires_grad_(),",
        tractable.check_own_draw_is_scored_like_any_other, ("RealNVP",)),
    "network ignores the context": Mutant(
        Parametric, "condition", "self.net(context)", "self.net(0 * context)",
        tractable.check_context_matters, ("Parametric normal",)),
    # programs
    "detached gradient": Mutant(
        autoregressive.AutoregressiveDistribution, "log_prob",
        "self.net.flat(value,", "self.net.requires_grad_(False).flat(value,",
        model.check_gradients_reach_every_parameter, ("MADE",), RuntimeError),
    "plate scale ignored": Mutant(
        core, "data_plate", '_DataPlate("data", n, subsample=torch.arange(rows), dim=-1)',
        '_DataPlate("data", rows, dim=-1)',
        model.check_plate_scale, ("MADE",)),
    "contexts and draws change places": Mutant(
        core.GenerativeModel, "sample", "flat[i : i + step]", "flat.flip(0)[i : i + step]",
        model.check_each_context_gets_its_own_draws, ("Parametric normal",)),
    "sampling leaves eval mode on": Mutant(
        core, "evaluating", "m.training = True", "pass",
        model.check_sample_shapes, ("MADE",)),
    "two models of one name in the store": Mutant(
        core.GenerativeModel, "svi", "-{next(_SVI_IDS)}", "",
        model.check_two_models_train_side_by_side, ("RealNVP",)),
    "weak references stay on the parameters": Mutant(
        core.GenerativeModel, "__getstate__", 'parameter.__dict__.pop("unconstrained", None)', "pass",
        model.check_copies, ("RealNVP", False, model.use_svi), TypeError),
    # latent
    "wrong sign of the KL": Mutant(
        ELBO, "_term", "-kl_divergence(", "kl_divergence(", latent.check_elbo_is_pyros, ("VAE",)),
    "guide's density left out": Mutant(
        ELBO, "_term", " - site_log_prob(guide_site).sum()", "",
        latent.check_elbo_is_pyros, ("VAE of flows",)),
    "particles summed, not averaged": Mutant(
        ELBO, "loss", "(rows * self.particles)", "rows", latent.check_elbo_is_pyros, ("VAE", 7)),
    "ELBO of the batch, not of the data": Mutant(
        ELBO, "loss", "rows = len(x) if n is None else n", "rows = len(x)",
        latent.check_elbo_is_pyros, ("VAE", 1, 12)),
    "score function left out": Mutant(
        ELBO, "loss", "if not all(", "if False and not all(", latent.check_score_function_gradient_is_unbiased),
    "mean of logs, by Pyro": Mutant(
        ImportanceWeighted, "_bound", "(log_sum(power * log_weights, 0) - math.log(self.particles))",
        "(power * log_weights).mean(0)", latent.check_importance_weighted_is_pyros),
    "mean of logs, by the bound": Mutant(
        ImportanceWeighted, "_bound", "(log_sum(power * log_weights, 0) - math.log(self.particles))",
        "(power * log_weights).mean(0)", latent.check_bounds_rise_to_the_likelihood),
    "a bound without - log K": Mutant(
        ImportanceWeighted, "_bound", " - math.log(self.particles)", "", latent.check_bounds_rise_to_the_likelihood),
    "weights without the guide": Mutant(
        core.Latent, "weigh", "(log_p - log_q)", "log_p", latent.check_optimal_guide_has_constant_weights),
    "imputation accepts everything": Mutant(
        completion, "_metropolis", '< weight["new"] - weight["old"]', '< 0 * weight["new"]',
        latent.check_complete_of_a_linear_gaussian_model),
    "beta on the likelihood too": Mutant(
        ELBO, "loss", "_weighed(term, beta) if name in latents else term", "beta * term",
        bounds.check_beta_weighs_the_kl),
    "beta left out of the score function": Mutant(
        elbo._Tempered, "_pyro_sample", 'msg["scale"] * self.weight', 'msg["scale"]',
        bounds.check_tempered_score_function_is_unbiased),
    "free bits for each row": Mutant(
        FreeBits, "forward", ".mean(0).clamp(min=self.nats).sum()", ".clamp(min=self.nats).mean(0).sum()",
        bounds.check_free_bits_are_a_floor),
    "free bits as a ceiling": Mutant(
        FreeBits, "forward", "clamp(min=", "clamp(max=", bounds.check_free_bits_are_a_floor),
    "the landing with the score": Mutant(
        elbo, "stopped", "p.detach()", "p", bounds.check_sticking_the_landing),
    "doubly without the square": Mutant(
        ImportanceWeighted, "_doubly", "that_count(2 * log_share, 0)", "that_count(log_share, 0)",
        bounds.check_doubly_reparameterised),
    "doubly with the other sign": Mutant(
        ImportanceWeighted, "_doubly", "loss - along", "loss + along", bounds.check_doubly_reparameterised),
    "total correlation of the wrong marginals": Mutant(
        BetaTCVAE, "terms", "log_aggregate(pairs, n or rows, self.stratified).sum(-1)",
        "log_aggregate(pairs, n or rows, self.stratified).mean(-1)", bounds.check_terms_are_the_exact_ones),
    "strata of unequal share": Mutant(
        bounds, "log_aggregate", "math.log(n - 1)", "math.log(n)", bounds.check_stratified_is_unbiased),
    "discrepancy with its diagonal": Mutant(
        infovae, "_mmd", "pairs = len(a) * (len(a) - 1)", "pairs = len(a) * len(a)",
        bounds.check_discrepancy_is_unbiased),
    "weights upside down": Mutant(
        ReweightedWakeSleep, "forward", "(log_p.detach() - log_q,", "(log_q - log_p.detach(),",
        players.check_reweighted_wake_sleep),
    "a wake phase without weights": Mutant(
        ReweightedWakeSleep, "forward", "(share * latent.row_log_prob(guide)).sum(0)",
        "latent.row_log_prob(guide).mean(0)",
        players.check_reweighted_wake_sleep),
    "a dream of the data": Mutant(
        wake_sleep._Alternating, "_dream", "get_trace(None, context, n=rows * particles)",
        "get_trace(torch.ones(rows * particles, *model.event_shape, dtype=model.dtype), context)",
        players.check_wake_sleep),
    "an E-step of the prior": Mutant(
        local, "_log_weights", "model.row_log_prob(program) - ", "-1 * ", players.check_refine_is_exact),
    "critics that mix up real and fake": Mutant(
        AdversarialVariationalBayes, "_critic_loss",
        "self.game.critic(self._score(x, guide, context), self._score(x, prior, context))",
        "self.game.critic(self._score(x, prior, context), self._score(x, guide, context))",
        players.check_the_critic_measures_the_kl),
    "a bound by the rows of the data": Mutant(
        ImportanceWeighted, "loss", "return self._bound(latent.weigh(drawn, self.particles, x, context))",
        "return self._bound(latent.weigh(drawn, self.particles, x, context)) * (len(x) / (n or len(x)))",
        model.check_the_size_of_the_data_weighs_nothing, ("ImportanceWeighted",)),
    "labels by the rows of the data": Mutant(
        SemiSupervised, "loss", "return -bound.mean()", "return -bound.mean() * (len(x) / (n or len(x)))",
        model.check_the_size_of_the_data_weighs_nothing, ("SemiSupervised",)),
    "a game that leaves the prior alone": Mutant(
        latent_game._LatentGame, "_run", "log_prior - log_prior.detach()", "0 * log_prior",
        priors.check_the_priors_gradient_in_the_game),
    "the top gets no gradient from the bottom": Mutant(
        code_pair.NearestCodePair, "levels", "top.straight()", "top.embeddings.flatten(-2)",
        levels.check_straight_through),
    "the bottom's codebook stands still": Mutant(
        code_pair.NearestCodePair, "_quantize", "numbers), learn", "numbers), learn and not which",
        levels.check_both_books_move),
    "the bottom's prior is given another top": Mutant(
        code_pair.EmbeddedPair, "log_prob", "embed(codes)", "embed(codes.flip(-1))",
        levels.check_the_prior_sums_to_one),
    "free bits of rows that do not count": Mutant(
        FreeBits, "forward", "torch.where(seen, kl, 0.0)", "seen * kl",
        priors.check_what_is_masked_has_no_weight, (ELBO(free_bits=FreeBits(0.6)), 0.6)),
    # measures of latents
    "units by their noise": Mutant(
        measures, "active_units", "torch.cat(means).double().var(0)",
        "torch.cat(means).double().square().mean(0)",
        measures.check_active_units),
    "KL of the last batch": Mutant(
        measures, "kl_per_dimension", "total = total + ", "total = ", measures.check_kl_per_dimension),
    "information without - log B": Mutant(
        measures, "mutual_information", " + math.log(len(x))", "", measures.check_mutual_information),
    "effective particles of half the weights": Mutant(
        measures, "importance_estimate", "(2 * weights).logsumexp(0)", "weights.logsumexp(0)",
        measures.check_sampling_error_is_the_spread),
    # guides of any program
    "packed site without its Jacobian": Mutant(
        program.ProgramGuide, "sample_pushed", "log_density=ladj", "log_density=0 * ladj",
        guides.check_constrained_sites_carry_their_jacobian, (FullCovariance,)),
    "packed site with the other Jacobian": Mutant(
        program.ProgramGuide, "sample_pushed", "transform.inv.log_abs_det_jacobian(value, free)",
        "transform.log_abs_det_jacobian(free, value)",
        guides.check_constrained_sites_carry_their_jacobian, (FullCovariance,)),
    "refinement goes down the bound": Mutant(
        SemiAmortized, "refine", "loc = loc + step_loc", "loc = loc - step_loc", guides.check_one_natural_step),
    "refinement forgets the scale of the plate": Mutant(
        SemiAmortized, "_bound", " * plate.subsample_size / plate.size", "", guides.check_one_natural_step, (40,)),
    "a critic that nobody trains": Mutant(
        Contrast, "loss", "total = total + cast(_Ratio, ratio).loss(fn, z)",
        "total = total + 0 * cast(_Ratio, ratio).loss(fn, z)", implicit_guides.check_the_critic_finds_the_density),
    "a contrast the wrong way round": Mutant(
        contrast._Ratio, "loss", "F.softplus(-of_guide).mean() + F.softplus(of_reference)",
        "F.softplus(of_guide).mean() + F.softplus(-of_reference)",
        implicit_guides.check_the_critic_finds_the_density),
    "a reference without its determinant": Mutant(
        contrast._Ratio, "log_density", " + ladj", "",
        implicit_guides.check_the_reference_is_exact_for_linear_guides),
    "globals held in the locals' density": Mutant(
        contrast._Ratio, "log_density", "context[..., self.read :]), -1)", "context[..., self.read :].detach()), -1)",
        implicit_guides.check_the_reference_is_exact_for_linear_guides),
    # incomplete rows
    "weights without the prior": Mutant(
        completion, "_weigh", "return z, log_prior + ", "return z, 0 * log_prior + ",
        latent.check_complete_by_importance),
    "weights without the proposal": Mutant(
        completion, "_weigh", " - log_mixture", "", latent.check_complete_by_importance),
    "what is missing counted in": Mutant(
        completion, "_seen", "torch.where(observed, each, 0.0)", "each", latent.check_complete_in_one_round),
    # energy
    "Langevin without its correction": Mutant(
        MALA, "step", "_metropolis(log_ratio, generator)", "_metropolis(0 * log_ratio, generator)",
        energy.check_kernel_invariance, ("MALA",)),
    "Langevin forgets the way back": Mutant(
        MALA, "step", "(gradient + gradient_y)", "(gradient + gradient)",
        energy.check_kernel_invariance, ("MALA",)),
    "a level that forgets what it was measured in": Mutant(
        meads, "_moved", "drifted / log_ratio.exp()", "drifted",
        meads_tests.check_joint_law, (MEADS(1.7, 0.1, moves=3),)),
    "refused momentum that goes on": Mutant(
        meads, "_moved", "-refreshed)", "refreshed)", meads_tests.check_joint_law, (MEADS(1.7, 0.1, moves=3),)),
    "momentum refreshed by too much": Mutant(
        meads, "_moved", "(1 - part.square()).sqrt()", "(1 - part.square())",
        energy.check_kernel_invariance, ("MEADS",)),
    "a fold that reads itself": Mutant(
        meads, "_measured", ".roll(1, 0)", "", meads_tests.test_no_setting_depends_on_what_it_moves),
    "low-rank momenta of the inverse law": Mutant(
        LowRank, "momentum", "values.rsqrt()", "values.sqrt()", low_ranks.check_products, (low_ranks.metric(),)),
    "low-rank velocity without its directions": Mutant(
        metric, "velocity", "(values - 1)", "values", low_ranks.check_products, (low_ranks.metric(),)),
    "scores weighed like draws": Mutant(
        low_rank, "_between", "_power(b, 0.5), _power(b, -0.5)", "_power(b, -0.5), _power(b, 0.5)",
        low_ranks.test_on_a_gaussian_the_estimate_is_exact),
    "random walk at another temperature": Mutant(
        RandomWalk, "step", "energy - energy_y", "0.8 * (energy - energy_y)",
        energy.check_kernel_invariance, ("RandomWalk",)),
    "wrong Gibbs conditional": Mutant(
        bipartite.RBMConditionals, "visible_given_hidden", "self.visible_bias", "0.8 * self.visible_bias",
        energy.check_kernel_invariance, ("BlockGibbs",)),
    "energy at odds with its kernel": Mutant(
        rbm.RBM, "energy", "linear(t, self.weight) + c", "linear(t, self.weight)",
        energy.check_samples_have_the_density),
    "AIS starts from another normaliser": Mutant(
        bipartite.AnnealedRBM, "base_log_partition", "len(self.c)", "(len(self.c) + 1)", energy.check_log_partition),
    "Gaussian units of another variance": Mutant(
        visible_units.GaussianUnits, "log_partition", "0.5 * len", "0.4 * len",
        visibles.test_log_partition_is_the_sum_over_the_support, ("gaussian", 0)),
    "softmax units that take the likeliest level": Mutant(
        visible_units.SoftmaxUnits, "draw", ".exponential_(generator=generator)", ".fill_(1.0)",
        visibles.test_conditionals_match_the_joint_energy, ("softmax",)),
    "twins that see one copy": Mutant(
        twins.TwinRBM, "_total", ".sum(-2)", "[..., 0, :]", deep_machines.test_twins_are_the_tied_rbm, ((2, 1),)),
    "deep machine misses a link": Mutant(
        dbm.DeepBoltzmannMachine, "_join", "weights[odd].t()", "0 * weights[odd].t()",
        deep_machines.test_energy_sums_every_hidden_layer_out, ((4, [3, 2]), 0)),
    "deep machine moves without its context": Mutant(
        dbm.DeepBoltzmannMachine, "potential", "self.joined(context)", "self.joined(None)",
        energy.check_moves_leave_the_model, ("DeepBoltzmannMachine", True)),
    "odd units drawn one by one": Mutant(
        dbm.DeepBoltzmannMachine, "draw_even", "states[one_of(logits.softmax(-1), generator)]",
        "torch.bernoulli(logits.softmax(-1) @ states, generator=generator)",
        deep_machines.test_hidden_units_are_drawn_from_their_posterior, ((4, [3, 2]), True, pytest.MonkeyPatch())),
    "hidden units drawn one by one": Mutant(
        dbn.DeepBeliefNetwork, "draw_hidden", "states[one_of(p, generator)]",
        "torch.bernoulli(p @ states, generator=generator)",
        deep_beliefs.test_hidden_units_are_drawn_from_their_posterior, ((4, [3, 2]),)),
    "twice the error of importance": Mutant(
        tilted.TiltedEnergy, "_by_importance", "exp().std() / math", "exp().std() * 2 / math",
        neural_energies.test_standard_errors_are_the_spread_of_repeats, ("importance",)),
    "twice the error of reverse AIS": Mutant(
        normalised, "reverse_annealed_importance_sampling", "relative.std() / math", "relative.std() * 2 / math",
        restricted_machines.test_reverse_ais_standard_error_is_the_spread_of_repeats),
    "mean field without what comes from above": Mutant(
        dbm.DeepBoltzmannMachine, "mean_field", "inputs + mu[layer + 1] @ self.weights[layer]", "inputs",
        deep_machines.test_mean_field_is_coordinate_ascent_of_a_bound, ((4, [3, 2]),)),
    "a bound without its entropy": Mutant(
        dbm.DeepBoltzmannMachine, "variational_energy", " - entropy", "",
        deep_machines.test_the_bound_is_exact_without_links_above),
    "pre-training without doubled weights": Mutant(
        dbm.DeepBoltzmannMachine, "stack", "1 + (i < last)", "1", deep_machines.test_a_stack_becomes_a_machine),
    "joint training with data only": Mutant(
        MeanFieldContrastive, "loss", "mu, state.positions).value", "mu, torch.cat((x, *mu[1::2]), -1)).value",
        deep_machines.test_gradient_of_the_objective_is_that_of_the_bound),
    "belief network's posterior forgets the layers above": Mutant(
        dbn.DeepBeliefNetwork, "draw_hidden", " + above", "",
        deep_beliefs.test_hidden_units_are_drawn_from_their_posterior, ((4, [3, 2]),)),
    "belief network weighs with another guide": Mutant(
        dbn.DeepBeliefNetwork, "log_weights", "- recognition", "- 0.9 * recognition",
        deep_beliefs.test_weights_are_unbiased, ((4, [3, 2]), 0)),
    "sleep without the top machine": Mutant(
        UpDown, "forward", "model.descend(negative)", "model.descend(h[-1])", deep_beliefs.test_gradients_of_up_down,
        (None,)),
    "a tied top whose further units push": Mutant(
        rbm.RBM, "tie", " - input_of_few_links(", " - 0 * input_of_few_links(",
        deep_beliefs.test_units_beyond_the_tied_ones_say_nothing_to_second_order),
    "few links to first order only": Mutant(
        rbm, "input_of_few_links", " + (p * (1 - p) / 2) @ weight.square()", "",
        deep_beliefs.test_units_beyond_the_tied_ones_say_nothing_to_second_order),
    "a log Z that stands still": Mutant(
        PartitionMemory, "of", "not _same(self._state, state)", "False",
        contrastive.test_held_out_log_z_follows_the_optimiser, ("DBM", None)),
    "a subsample's rows that one chain reads twice": Mutant(
        subsamples, "subsets", "torch.where(seen, last[i], drawn[:, i])", "drawn[:, i]",
        subsamples.test_subsets_are_uniform, (3000,)),
    "starts of the even layers without their seed": Mutant(
        dbm.DeepBoltzmannMachine, "log_partition", "self.draw_even(samples, each, generator)",
        "self.draw_even(samples, each)", deep_machines.test_seeds_repeat_every_estimate_of_log_z),
    "no negatives in the gradient": Mutant(
        unnormalised.Unnormalised, "log_prob", "(missing - missing.detach())", "0 * missing",
        energy.check_training_gradient),
    "negatives with the wrong sign": Mutant(
        unnormalised.Unnormalised, "log_prob", "+ (missing", "- (missing", energy.check_training_gradient),
    "contrastive divergence with data only": Mutant(
        ContrastiveDivergence, "gap", "energy_gap(x, negatives).value", "energy_gap(x, 1 - x).value",
        contrastive.test_many_steps_give_the_likelihood_gradient, (False, 0)),
    "an energy gap that forgets the copies": Mutant(
        gap._Gap, "backward", "above * each.unsqueeze(-1)", "each.unsqueeze(-1)", gaps.check_gradient, ("twins",)),
    "centred weights with plain biases": Mutant(
        gap._Gap, "backward", "grad_c - grad_w @ visible", "grad_c", gaps.check_centred_step, ("RBM",)),
    "centring links layers that are not neighbours": Mutant(
        gap._Gap, "backward", "grad_w *= linked", "pass", gaps.check_centred_step, ("DBM of 3",)),
    "score matching with twice the square": Mutant(
        ScoreMatching, "loss", "square().sum(-1) / 2", "square().sum(-1)", scores.check_gaussian),
    "slices of another curvature": Mutant(
        SlicedScoreMatching, "loss", "(v * _derivative(along.sum(), x))", "_derivative(along.sum(), x)",
        scores.check_sliced, (True, True)),
    "denoising away from the rows": Mutant(
        DenoisingScoreMatching, "loss", "self.sigma * s + noise", "self.sigma * s - noise", scores.check_denoising),
    "noise-contrastive without its ratio": Mutant(
        NoiseContrastive, "loss", " - math.log(self.ratio)", "", contrasts.check_gradient_at_the_truth, (3,)),
    "replay that never begins anew": Mutant(
        ReplayDivergence, "loss", "< self.restart", "< 0", replays.check_restarts),
    "half the entropy": Mutant(
        ReverseKL, "loss", "(log_q - ", "(0.5 * log_q - ", reverse.check_the_loss_is_the_kl_of_two_normals),
    "a target divided the wrong way": Mutant(
        target, "target_estimate", "context) - log_q)", "context) + log_q)", targets.check_a_normal_by_a_wider_one),
    "an effective sample size without its square": Mutant(
        target, "target_estimate", "torch.logsumexp(2 * normalised", "torch.logsumexp(1.5 * normalised",
        targets.check_a_normal_by_a_wider_one),
    # implicit
    "a fake called real": Mutant(
        Minimax, "value", "F.logsigmoid(-fake)", "F.logsigmoid(fake)",
        implicit.check_the_game_measures_jensen_shannon),
    "generator that goes the critic's way": Mutant(
        GAN, "generate", "self.generator(", "0.3 * self.generator(", implicit.check_the_game_measures_jensen_shannon),
    "critic's loss moves the generator": Mutant(
        Adversarial, "forward", "with torch.no_grad():", "with torch.enable_grad():",
        implicit.check_the_critic_moves_first),
}  # fmt: skip

# Those whose check uses pyro.infer.SVI, which fills Pyro's store.
MARKED = [
    pytest.param(name, marks=pytest.mark.pyro_store if m.owner is core.GenerativeModel else ())
    for name, m in MUTANTS.items()
]


@pytest.mark.parametrize("name", MARKED)
def test_mutant_is_caught(name, monkeypatch):
    mutant = MUTANTS[name]
    mutant.check(*mutant.arguments)
    mutant.plant(monkeypatch)
    with pytest.raises(mutant.caught_by):
        mutant.check(*mutant.arguments)


def test_a_false_claim_is_caught(monkeypatch):
    bijector.check_claims("AffineCoupling")
    monkeypatch.setattr(univariate.ScaleShift, "volume_preserving", True)
    with pytest.raises(AssertionError):
        bijector.check_claims("AffineCoupling")


def test_a_missing_claim_is_caught(monkeypatch):
    monkeypatch.setattr(normalization.Affine, "triangular", False)
    with pytest.raises(AssertionError):
        bijector.check_claims("Affine")


def test_an_eager_objective_is_caught(monkeypatch):
    forward = Adversarial.forward
    monkeypatch.setattr(Adversarial, "forward", lambda *a, **k: iter(list(forward(*a, **k))))
    with pytest.raises(AssertionError):
        implicit.check_the_critic_moves_first()


def test_a_cache_that_outlives_a_change_is_caught(monkeypatch):
    """Pyro's own way (trap 1): the last pair of tensors is remembered by identity."""
    original, memory = coupling._CouplingTransform.call_and_ladj, {}

    def cached(self, x):
        return memory.setdefault(id(x), original(self, x))

    monkeypatch.setattr(coupling._CouplingTransform, "call_and_ladj", cached)
    with pytest.raises(AssertionError):
        bijector.check_nothing_goes_stale("AffineCoupling")
