"""A Pyro program's posterior as an energy over one unconstrained vector."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.utils._pytree import tree_leaves

from pyrodgm.engine.checks import check_data, check_one_device, check_plates, check_subsampling, inside
from pyrodgm.engine.enumerated import summed_log_prob
from pyrodgm.engine.subsampled import GivenRows, ReadRows, Rows, subsampled_plates
from pyrodgm.traces import is_deterministic, sample_sites

__all__ = ["Moderate", "Slot", "UnconstrainedProgram", "beside"]


class Slot(NamedTuple):
    """Where a latent site lies in the vector.

    Attributes:
        start, stop: its part of the vector.
        shape: of the site in the unconstrained space.
        dtype: of the site's values.
        values: shape of the site's values.
        unread: where ``obs_mask=`` puts data in place of the values, of the site's batch shape, or None.
    """

    start: int
    stop: int
    shape: torch.Size
    dtype: torch.dtype
    values: torch.Size
    unread: Tensor | None = None


class Moderate(Messenger):
    """Gives continuous latent sites values as chains start from, uniform on (-2, 2) in the unconstrained space.

    A draw of their prior may lie anywhere, and some priors cannot be drawn from at all; values of those have the type
    and the device of the first floating tensor that is given.

    Args:
        given: arguments of the program.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__()
        tensors = (v for v in tree_leaves(given) if isinstance(v, Tensor) and v.is_floating_point())
        self.like = next(tensors, torch.empty(()))

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["done"] or msg["value"] is not None or site_is_subsample(msg) or fn.support.is_discrete:
            return
        transform = biject_to(fn.support)
        like = self.like.new_empty(transform.inverse_shape(fn.shape()))
        with suppress(NotImplementedError):
            like = transform.inv(fn())
        msg["value"] = transform(4 * torch.rand_like(like) - 2)
        msg["done"] = True


class _Place(Messenger):
    """Gives each latent site the value that a vector holds for it, and sums the log-Jacobians.

    The bijection is that of the support which the site has in this very run, so supports may depend on other sites.
    Where nobody reads the values their part of the vector, which could go anywhere, is made standard normal.
    """

    def __init__(self, slots: dict[str, Slot], vector: Tensor, discrete: list[str]) -> None:
        super().__init__()
        self.slots, self.vector, self.discrete = slots, vector, discrete
        self.ladj: Tensor = vector.new_zeros(())

    def _pyro_sample(self, msg: Any) -> None:
        slot = self.slots.get(msg["name"])
        if slot is None:
            if not msg["is_observed"] and msg["name"] not in self.discrete and not site_is_subsample(msg):
                raise ValueError(
                    f"expected the same latent sites in every run of the program, got {msg['name']!r} "
                    f"beside {sorted(self.slots)}; marginalise the choice between them"
                )
            return
        u = self.vector[slot.start : slot.stop].reshape(slot.shape).to(slot.dtype)
        transform = biject_to(msg["fn"].support)
        msg["value"] = value = transform(u)
        msg["done"] = True
        if value.shape != slot.values:
            raise ValueError(
                f"expected values of shape {tuple(slot.values)} at {msg['name']!r} in every run of the program, got "
                f"{tuple(value.shape)}; its support must not depend on a discrete site that is summed out"
            )
        ladj = transform.log_abs_det_jacobian(u, value)
        if slot.unread is not None:
            free = torch.where(beside(slot.unread, u), u, 0.0)
            self.ladj = self.ladj - free.square().sum().to(self.vector.dtype) / 2
            ladj = torch.where(beside(slot.unread, ladj), 0.0, ladj)
        self.ladj = self.ladj + ladj.sum().to(self.vector.dtype)


class _Read(Messenger):
    """The inverse of :class:`_Place`: the program at given values of sites, which it keeps unconstrained."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values, self.found = values, dict[str, Tensor]()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"] = value = self.values[msg["name"]]
            msg["done"] = True
            self.found[msg["name"]] = biject_to(msg["fn"].support).inv(value)


class UnconstrainedProgram:
    r"""The latent sites of a static Pyro program in one vector u, and the program's energy there.

    .. math:: E(u) = -\log p(z(u), x) - \log \left| \det \frac{\partial z}{\partial u} \right|

    z(u) maps each part of u onto its site's support by ``biject_to``. Discrete latent sites are summed out by Pyro's
    enumeration. A plate with ``subsample_size`` reads the rows that it is given, and its part of the energy is scaled
    to all of them. Where ``obs_mask=`` puts data in place of a latent value, u is standard normal.

    Args:
        program: whose sites are the same in every run; conditioned by ``obs=`` or ``poutine.condition``.
        args, kwargs: what it is called with.
    Attributes:
        slots: name of each continuous latent site -> where it lies.
        size: D, of the vector.
        enumerated: names of the discrete sites that are summed out.
        width: numbers in all its sites.
        observed: names of the observed sites.
        subsampled: name of each plate that reads a part of its rows -> how many.
    Raises: ValueError for a program without continuous latent sites or with discrete sites that cannot be enumerated;
        for data outside their support or of a shape that pairs them with all parameters; for values on several
        devices; for a batch dimension without a plate beside discrete sites; for a subsampled plate that is a loop,
        has latent sites inside, has its rows by ``subsample=``, or is beside discrete sites.
    Source: Carpenter et al. (2017), Stan: a probabilistic programming language, section 2.5 (the change of variables).
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program():
        ...     return pyro.sample("scale", dist.Exponential(1.0))
        >>> energy = UnconstrainedProgram(program)
        >>> u = torch.zeros(1)
        >>> energy(u), energy.constrain(u)["scale"]  # E = exp(u) - u
        (tensor(1.), tensor(1.))
    """

    def __init__(self, program: Callable[..., Any], args: tuple[Any, ...] = (), kwargs: Any = None) -> None:
        self.args, self.kwargs = args, dict(kwargs or {})
        self.program = program
        given = GivenRows()
        trace = self._moderate_trace(given)
        self.subsampled: dict[str, Rows] = subsampled_plates(trace)
        sites = sample_sites(trace)
        check_one_device(sites)
        self.width = sum(site["value"].numel() for site in sites.values() if isinstance(site["value"], Tensor))
        latent = {k: s for k, s in sites.items() if not s["is_observed"]}
        self.observed = [k for k, s in sites.items() if s["is_observed"] and not is_deterministic(s)]
        for name in self.observed:
            check_data(name, sites[name], partial(self._moderate_trace, GivenRows()))
        self.enumerated = [k for k, s in latent.items() if s["fn"].support.is_discrete]
        for name in self.enumerated:
            if not latent[name]["fn"].has_enumerate_support:
                cure = "sum it out by hand, or condition on it"
                if _unread(name, sites) is not None:
                    cure = "leave the missing rows out by poutine.mask(mask=...) instead of obs_mask="
                raise ValueError(
                    f"expected discrete latent sites with finitely many values, got {name!r} of "
                    f"{type(latent[name]['fn']).__name__}; {cure}"
                )
        self.slots: dict[str, Slot] = {}
        self.size = 0
        for name, site in latent.items():
            if name in self.enumerated:
                continue
            value = site["value"]
            u = biject_to(site["fn"].support).inv(value)
            unread = _unread(name, sites)
            self.slots[name] = Slot(self.size, self.size + u.numel(), u.shape, u.dtype, value.shape, unread)
            self.size += u.numel()
        if not self.slots:
            raise ValueError("expected a program with a continuous latent site, got none; sample one without obs=")
        self.dtype = reduce(torch.promote_types, [slot.dtype for slot in self.slots.values()])
        self.device = next(latent[name]["value"].device for name in self.slots)
        frames = [f for s in sites.values() for f in s["cond_indep_stack"]]
        self._nesting = max((-f.dim for f in frames if f.vectorized), default=0)
        # numbers of the host, for a graph has no others: Pyro reads them off a tensor
        self._loops = {f.name: list(range(f.size)) for f in frames if not f.vectorized and f.name not in given.names}
        check_subsampling(self.subsampled, given.names, sites, bool(self.enumerated))
        self._expected = set(latent)
        self._scored = program
        if self.enumerated:
            check_plates(sites)
            self._scored = poutine.enum(config_enumerate(program, "parallel"), first_available_dim=-1 - self._nesting)
        self._summed = self._reached(sites) if self.enumerated else set[str]()

    @torch.no_grad()
    def _moderate_trace(self, given: GivenRows) -> Any:
        with poutine.block(), given, Moderate(self.args, self.kwargs):
            return poutine.trace(self.program).get_trace(*self.args, **self.kwargs)

    @torch.no_grad()
    def _reached(self, sites: dict[str, Any]) -> set[str]:
        """The deterministic sites that have a value for each of a discrete site that is summed out."""
        middle = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        with poutine.block(), ReadRows(self._loops), _Place(self.slots, middle, self.enumerated):
            trace = poutine.trace(self._scored).get_trace(*self.args, **self.kwargs)
        found = {k: s["value"].shape for k, s in sample_sites(trace).items() if is_deterministic(s)}
        return {k for k, shape in found.items() if k not in sites or shape != sites[k]["value"].shape}

    def __call__(self, u: Tensor, *rows: Tensor) -> Tensor:
        """E(u) in nats, or its estimate from rows of the subsampled plates, (D,), (n,) each -> ()."""
        if len(rows) != len(self.subsampled):
            raise self.needs_all_rows()
        place = _Place(self.slots, u, self.enumerated)
        with poutine.block(), ReadRows({**self._loops, **dict(zip(self.subsampled, rows, strict=True))}), place:
            trace = poutine.trace(self._scored).get_trace(*self.args, **self.kwargs)
        missing = self._expected - set(trace.nodes)
        if missing:
            raise ValueError(
                f"expected the same latent sites in every run of the program, got one without {sorted(missing)}; "
                "marginalise the choice between them"
            )
        log_joint = summed_log_prob(trace) if self.enumerated else trace.log_prob_sum()
        return -(log_joint + place.ladj)

    def needs_all_rows(self) -> ValueError:
        """What a kernel or method is told that compares energies of a subsampled program."""
        plates = ", ".join(f"{r.read} of {r.size} in {k!r}" for k, r in self.subsampled.items())
        return ValueError(
            f"expected plates over all their rows, got {plates}, from which there is a gradient but no energy; use "
            "SGLD or SGHMC, or drop subsample_size="
        )

    def constrain(self, u: Tensor) -> dict[str, Tensor]:
        """Values of the continuous latent and the deterministic sites at u, (D,) -> name to (*site shape).

        Deterministic sites inside a subsampled plate, whose rows are others each time, are left out, and those that
        depend on a discrete site that is summed out.
        """
        rows = {k: torch.arange(r.read, device=u.device) for k, r in self.subsampled.items()}
        with poutine.block(), ReadRows(rows), _Place(self.slots, u, self.enumerated):
            trace = poutine.trace(self.program).get_trace(*self.args, **self.kwargs)
        return {
            k: s["value"]
            for k, s in sample_sites(trace).items()
            if k in self.slots or (is_deterministic(s) and k not in self._summed and not inside(self.subsampled, s))
        }

    def unconstrain(self, values: dict[str, Tensor]) -> Tensor:
        """The vector whose sites have these values, (D,).

        Raises: ValueError if the names are not the latent sites'.
        """
        if set(values) != set(self.slots):
            raise ValueError(f"expected values of the sites {sorted(self.slots)}, got {sorted(values)}")
        with torch.no_grad(), poutine.block(), _Read(values) as read:
            self.program(*self.args, **self.kwargs)
        return torch.cat([read.found[k].expand(s.shape).reshape(-1).to(self.dtype) for k, s in self.slots.items()])


def beside(rows: Tensor, values: Tensor) -> Tensor:
    """A tensor of a site's batch shape with ones for what ``values`` has to the right of it."""
    return rows[(..., *[None] * (values.dim() - rows.dim()))]


def _unread(name: str, sites: dict[str, Any]) -> Tensor | None:
    """Where data stand in place of a latent site's values: Pyro reads ``obs_mask=`` as two sites, one of them data."""
    stem = name.removesuffix("_unobserved")
    data = sites.get(f"{stem}_observed")
    if stem == name or stem not in sites or data is None or not data["is_observed"] or data["mask"] is None:
        return None
    site = sites[name]
    return torch.as_tensor(data["mask"], device=site["value"].device).expand(site["fn"].batch_shape)
