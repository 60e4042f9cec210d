"""flowjax's flows of the same sizes, each task one jitted function; JAX compiles in the warm-up and uses every core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Jitted", "flowjax"]


@dataclass
class Jitted:
    """What is timed of a library that does whole tasks by itself: "train", "log_prob", "sample", "vi"."""

    name: str
    tasks: dict[str, Callable[[], Any]]
    parameters: int


def flowjax(
    kind: str,
    features: int,
    layers: int,
    hidden: Sequence[int] = (),
    bins: int = 0,
    bound: float = 3.0,
    batch: int = 512,
    n: int = 1000,
) -> Jitted:
    """Couplings, autoregressive flows or planar maps, with Adam by optax.

    Args:
        kind: "coupling", "MAF", "IAF" (whose fast direction is the draw) or "planar".
        bins: of the rational-quadratic spline, 0 for affine maps.
    """
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax
    from flowjax.bijections import Affine, RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import coupling_flow, masked_autoregressive_flow, planar_flow

    key = jax.random.key(0)
    options: dict[str, Any] = {"base_dist": Normal(jnp.zeros(features)), "flow_layers": layers}
    if kind == "planar":
        flow = planar_flow(key, **options, invert=False)
    else:
        transformer = RationalQuadraticSpline(knots=bins, interval=bound) if bins else Affine()
        options.update(transformer=transformer, nn_width=hidden[0], nn_depth=len(hidden), invert=kind != "IAF")
        flow = (coupling_flow if kind == "coupling" else masked_autoregressive_flow)(key, **options)
    weights, rest = eqx.partition(flow, eqx.is_inexact_array)
    x = jax.random.normal(key, (batch, features))
    optimizer = optax.adam(1e-4)
    state = {"weights": weights, "optimizer": optimizer.init(weights), "key": key}

    def likelihood(weights: Any, key: Any) -> Any:
        return -eqx.combine(weights, rest).log_prob(x).mean()

    def reverse_kl(weights: Any, key: Any) -> Any:
        draws, log_prob = eqx.combine(weights, rest).sample_and_log_prob(key, (batch,))
        return (log_prob + 0.5 * jnp.square(draws).sum(-1)).mean()

    def step(loss: Callable[..., Any]) -> Callable[[], None]:
        @jax.jit
        def update(weights: Any, moments: Any, key: Any) -> Any:
            changes, moments = optimizer.update(jax.grad(loss)(weights, key), moments)
            return optax.apply_updates(weights, changes), moments

        def run() -> None:
            state["key"], now = jax.random.split(state["key"])
            state["weights"], state["optimizer"] = jax.block_until_ready(
                update(state["weights"], state["optimizer"], now)
            )

        return run

    log_prob = jax.jit(lambda weights: eqx.combine(weights, rest).log_prob(x))
    sample = jax.jit(lambda weights, key: eqx.combine(weights, rest).sample(key, (n,)))
    tasks: dict[str, Callable[[], Any]] = {
        "train": step(likelihood),
        "log_prob": lambda: jax.block_until_ready(log_prob(state["weights"])),
        "sample": lambda: jax.block_until_ready(sample(state["weights"], key)),
        "vi": step(reverse_kl),
    }
    count = sum(leaf.size for leaf in jax.tree.leaves(weights))
    return Jitted("flowjax, jit", tasks, count)
