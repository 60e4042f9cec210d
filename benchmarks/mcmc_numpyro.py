"""The posteriors of ``mcmc_models.py`` written again in NumPyro, and its NUTS and blackjax's over them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import torch
from jax import Array
from mcmc_models import Model
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import initialize_model

__all__ = ["PROGRAMS", "blackjax_nuts", "numpyro_nuts"]

Found = tuple[dict[str, np.ndarray], float, float]  # draws by site, seconds of sampling, seconds in all


def correlated_gaussian(factor: Array) -> None:
    numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(len(factor)), scale_tril=factor))


def logistic_regression(x: Array, y: Array) -> None:
    weight = numpyro.sample("weight", dist.Normal(jnp.zeros(x.shape[1]), 1.0).to_event(1))
    bias = numpyro.sample("bias", dist.Normal(0.0, 5.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ weight + bias), obs=y)


def schools_centred(y: Array, sigma: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def schools(y: Array, sigma: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def radon(county: Array, floor: Array, y: Array, counties: int) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
    between = numpyro.sample("between", dist.HalfNormal(1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    within = numpyro.sample("within", dist.HalfNormal(1.0))
    with numpyro.plate("counties", counties):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    with numpyro.plate("houses", len(y)):
        numpyro.sample("y", dist.Normal(mu + between * z[county] + slope * floor, within), obs=y)


def stochastic_volatility(y: Array) -> None:
    step = numpyro.sample("step", dist.Exponential(10.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(len(y)), 1.0).to_event(1))
    with numpyro.plate("days", len(y)):
        numpyro.sample("y", dist.Normal(0.0, jnp.exp(step * jnp.cumsum(z, -1))), obs=y)


def funnel() -> None:
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(9), 1.0).to_event(1))
    numpyro.deterministic("x", jnp.exp(v / 2) * z)


def gp_regression(x: Array, y: Array) -> None:
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
    length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    kernel = scale**2 * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
    factor = jnp.linalg.cholesky(kernel + (noise**2 + 1e-4) * jnp.eye(len(x)))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), scale_tril=factor), obs=y)


def mixture(y: Array) -> None:
    """The label is summed out by hand, as Pyro's enumeration does it."""
    weight = numpyro.sample("weight", dist.Beta(2.0, 2.0))
    low = numpyro.sample("low", dist.Normal(-2.0, 1.0))
    gap = numpyro.sample("gap", dist.LogNormal(1.0, 0.5))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    of_low = jnp.log1p(-weight) + dist.Normal(low, scale).log_prob(y)
    of_high = jnp.log(weight) + dist.Normal(low + gap, scale).log_prob(y)
    numpyro.factor("y", jnp.logaddexp(of_low, of_high).sum())


def neural_net(x: Array, y: Array, hidden: int) -> None:
    w1 = numpyro.sample("w1", dist.Normal(jnp.zeros((x.shape[1], hidden)), 1.0).to_event(2))
    b1 = numpyro.sample("b1", dist.Normal(jnp.zeros(hidden), 1.0).to_event(1))
    w2 = numpyro.sample("w2", dist.Normal(jnp.zeros(hidden), 1.0).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    f = numpyro.deterministic("f", jnp.tanh(x @ w1 + b1) @ w2 / hidden**0.5)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(f, noise), obs=y)


def item_response(student: Array, item: Array, y: Array, students: int, items: int) -> None:
    with numpyro.plate("students", students):
        ability = numpyro.sample("ability", dist.Normal(0.0, 1.0))
    with numpyro.plate("items", items):
        difficulty = numpyro.sample("difficulty", dist.Normal(0.0, 1.0))
        slope = numpyro.sample("slope", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("answers", len(y)):
        logits = slope[item] * (ability[student] - difficulty[item])
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


PROGRAMS: dict[str, Callable[..., None]] = {
    program.__name__: program
    for program in (
        correlated_gaussian,
        logistic_regression,
        schools_centred,
        schools,
        radon,
        stochastic_volatility,
        funnel,
        gp_regression,
        mixture,
        neural_net,
        item_response,
    )
}


def _written_again(model: Model) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """NumPyro's program of that name, and the arguments as jax's arrays (counts stay numbers)."""
    args = tuple(jnp.asarray(a.numpy()) if isinstance(a, torch.Tensor) else a for a in model.args)
    return PROGRAMS[model.program.__name__], args


def numpyro_nuts(model: Model, chains: int, warmup: int, draws: int, seed: int, target: float = 0.8) -> Found:
    """``MCMC`` with vectorised chains. It compiles anew in every run, so sampling alone is timed by a jitted scan of
    the same kernel from where warm-up ended, called a second time."""
    jax.clear_caches()
    program, args = _written_again(model)
    began = time.perf_counter()
    kernel = NUTS(program, target_accept_prob=target)
    sampler = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    sampler.warmup(jax.random.PRNGKey(seed), *args)
    warm = sampler.post_warmup_state
    sampler.run(jax.random.PRNGKey(seed + 1), *args)
    found = jax.block_until_ready(sampler.get_samples(group_by_chain=True))
    in_all = time.perf_counter() - began

    def step(state: Any, _: None) -> tuple[Any, Any]:
        state = kernel.sample(state, args, {})
        return state, state.z

    @jax.jit
    def run(state: Any) -> Any:
        post = kernel.postprocess_fn(args, {})
        return jax.vmap(jax.vmap(post) if chains > 1 else post)(jax.lax.scan(step, state, None, length=draws)[1])

    jax.block_until_ready(run(warm))
    again = time.perf_counter()
    jax.block_until_ready(run(warm))
    return {k: np.asarray(v) for k, v in found.items()}, time.perf_counter() - again, in_all


def blackjax_nuts(model: Model, chains: int, warmup: int, draws: int, seed: int, target: float = 0.8) -> Found:
    """Stan's window adaptation and NUTS of blackjax over NumPyro's potential, each chain by ``vmap``, jitted.

    Each chain adapts by itself, as blackjax's adaptation does.
    """
    jax.clear_caches()
    program, args = _written_again(model)
    began = time.perf_counter()
    start, adapt, sample = jax.random.split(jax.random.PRNGKey(seed), 3)
    found = initialize_model(jax.random.split(start, chains), program, model_args=args, dynamic_args=False)

    def log_density(z: Any) -> Array:
        return -found.potential_fn(z)

    windows = blackjax.window_adaptation(blackjax.nuts, log_density, target_acceptance_rate=target)

    def warm(key: Array, z: Any) -> tuple[Any, Any]:
        (state, parameters), _ = windows.run(key, z, num_steps=warmup)
        return state, parameters

    def draw(key: Array, state: Any, parameters: Any) -> Any:
        kernel = blackjax.nuts(log_density, **parameters)

        def step(state: Any, key: Array) -> tuple[Any, Any]:
            state, _ = kernel.step(key, state)
            return state, state.position

        positions = jax.lax.scan(step, state, jax.random.split(key, draws))[1]
        return jax.vmap(found.postprocess_fn)(positions)

    state, parameters = jax.jit(jax.vmap(warm))(jax.random.split(adapt, chains), found.param_info.z)
    run = jax.jit(jax.vmap(draw))
    keys = jax.random.split(sample, chains)
    values = jax.block_until_ready(run(keys, state, parameters))
    in_all = time.perf_counter() - began
    again = time.perf_counter()
    values = jax.block_until_ready(run(keys, state, parameters))
    return {k: np.asarray(v) for k, v in values.items()}, time.perf_counter() - again, in_all
