"""NumPyro's draws as our posterior, and our densities inside NumPyro's models."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyrodgm.bridges.torch_to_jax import to_jax
from pyrodgm.core import Tractable, evaluating
from pyrodgm.engine.posterior import Posterior
from pyrodgm.engine.surroundings import validation
from pyrodgm.seeding import random_state

try:
    import jax
    import jax.numpy as jnp
    from numpyro.distributions import Distribution, constraints
except ImportError as error:
    raise ImportError('this bridge needs NumPyro: pip install "pyrodgm[jax]"') from error

__all__ = ["NumPyroDensity", "from_numpyro"]

_STATS = {
    "diverging": "diverging",
    "accept_prob": "acceptance_rate",
    "num_steps": "n_steps",
    "energy": "energy",
    "adapt_state.step_size": "step_size",
}


def from_numpyro(mcmc: Any) -> Posterior:
    """The draws of a ``numpyro.infer.MCMC`` that has run, by chain, with what it kept of the sampler.

    Extra fields that were asked for become the statistics of :class:`~pyrodgm.Posterior`: "diverging", "accept_prob",
    "num_steps", "energy", "adapt_state.step_size", and "potential_energy", whose negative is "lp".

    Args:
        mcmc: after ``run(..., extra_fields=("energy", "diverging", ...))``.
    Raises: ValueError for one that has not run; ImportError without NumPyro.
    Source: Phan et al. (2019), arXiv:1912.11554.
    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC, NUTS
        >>> kernel = NUTS(lambda: numpyro.sample("z", dist.Normal()))
        >>> run = MCMC(kernel, num_warmup=5, num_samples=7, progress_bar=False)
        >>> run.run(jax.random.PRNGKey(0))
        >>> from_numpyro(run)["z"].shape
        torch.Size([1, 7])
    """
    if mcmc.last_state is None:
        raise ValueError("expected an MCMC that has run, got one without draws; call mcmc.run first")
    samples = {name: _tensor(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
    fields = mcmc.get_extra_fields(group_by_chain=True)
    stats = {ours: _tensor(fields[theirs]) for theirs, ours in _STATS.items() if theirs in fields}
    if "potential_energy" in fields:
        stats["lp"] = -_tensor(fields["potential_energy"])
    return Posterior(samples, stats)


class NumPyroDensity(Distribution):
    """A trained density as a NumPyro distribution: its log_prob is jax, translated from the traced graph.

    The parameters are those of now. Draws come from torch, through a host callback.

    Args:
        model: any Tractable with real event of one dimension; it keeps its dtype, so a float64 model wants
            ``numpyro.enable_x64()``.
        context: (C,) of a conditional model.
    Raises: NotImplementedError if its density uses an operation without translation.
    Source: translation by :func:`~pyrodgm.bridges.torch_to_jax.to_jax`.
    Example:
        >>> from pyrodgm.tractable import RealNVP
        >>> flow = RealNVP(2)
        >>> value = NumPyroDensity(flow).log_prob(np.zeros((3, 2), np.float32))
        >>> bool(abs(np.asarray(value) - flow.log_prob(torch.zeros(3, 2)).detach().numpy()).max() < 1e-5)
        True
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    pytree_aux_fields = ("model", "given", "_one")  # what jax's scan takes apart and puts together again

    def __init__(self, model: Tractable, context: Tensor | None = None) -> None:
        self.model = model
        self.given = context
        beside = None if context is None else context.detach().unsqueeze(0)

        def one(x: Tensor) -> Tensor:
            with validation(False):
                return model.log_prob(x.unsqueeze(0), beside)[0]

        with evaluating(model):
            with validation(False):
                example = model.sample(1, context)[0]
            self._one = to_jax(one, example)
        super().__init__(batch_shape=(), event_shape=tuple(model.event_shape), validate_args=False)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        value = jnp.asarray(value)
        lead = value.shape[: value.ndim - len(self.event_shape)]
        flat = value.reshape((-1, *self.event_shape))
        return jax.vmap(self._one)(flat).reshape(lead)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        shape = tuple(sample_shape) + tuple(self.event_shape)
        dtype = jax.dtypes.canonicalize_dtype(np.dtype(str(self.model.dtype).removeprefix("torch.")))
        seed = jax.random.bits(key, dtype=jnp.uint32)

        def draw(number: Any) -> Any:
            n = int(np.prod(sample_shape, dtype=int))
            with random_state(self.model.device, int(number)):
                found = self.model.sample(max(n, 1), self.given)
            return found.reshape(shape).cpu().numpy().astype(dtype)

        return jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, dtype), seed, vmap_method="sequential")


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value))  # a copy: jax's memory is read-only
