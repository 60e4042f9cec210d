"""Semi-amortized guides: the network's answer, made better by a few steps on each row's own bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask, sum_rightmost
from torch import Tensor, nn
from torch.distributions import biject_to

from pyrodgm.guides.gaussian import MeanField, sample_normals, scale_of
from pyrodgm.guides.program import ProgramGuide
from pyrodgm.guides.reading import Call, Site
from pyrodgm.guides.sites import Sites, check_sites, refuse_scaled
from pyrodgm.traces import sample_sites

__all__ = ["SemiAmortized"]


class SemiAmortized(ProgramGuide):
    r"""A mean-field guide whose local means and scales take some steps up the bound, row by row.

    .. math:: m \leftarrow m + \eta_m\, s^2\, \nabla_m \mathcal L_b, \qquad
        \rho \leftarrow \rho + \eta_\rho\, \nabla_\rho \mathcal L_b, \qquad s = \mathrm{softplus}(\rho)

    :math:`\mathcal L_b` is row b's bound at the medians of the global sites, estimated with a pair of opposite draws,
    so for a Gaussian posterior the gradient of the mean has no noise. The steps are differentiated through, so
    network, step sizes and the program's parameters are trained for where the steps lead. Where the paper takes plain
    steps we scale the mean's by :math:`s^2` (the natural gradient), which frees them from the scale of the data.
    Each step runs the program twice.

    Args:
        sites: what one trace of the program told; at least one local continuous site, no discrete ones.
        steps: refinements of each call.
        step_size: where both step sizes start; they are learned.
        hidden: widths of the network.
        scale: standard deviation with which the global sites start.
    Raises: ValueError if the program has no local continuous sites or has discrete ones, if a site is under a
        ``poutine.scale``, or for steps < 1.
    Source: Kim et al. (2018), arXiv:1802.02550, algorithm 1.
    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        >>> x = torch.tensor([1.0, -1.0])
        >>> guide = SemiAmortized(Sites(program, (x,)), steps=2)
        >>> guide(x)["z"].shape
        torch.Size([2])
    """

    def __init__(
        self,
        sites: Sites,
        steps: int = 5,
        step_size: float = 0.3,
        hidden: Sequence[int] = (64, 64),
        scale: float = 0.1,
    ) -> None:
        check_sites(sites)
        if not sites.local_size or sites.discrete:
            raise ValueError("expected a program with local continuous sites and no discrete ones; use MeanField")
        if steps < 1 or not step_size > 0:
            raise ValueError(f"expected steps >= 1 and step_size > 0, got {steps} and {step_size}")
        refuse_scaled(sites, type(self).__name__)
        super().__init__(sites)
        self.amortized = MeanField(sites, hidden, scale)
        self.steps = steps
        self.log_step = nn.Parameter(torch.full((2,), step_size).log())
        self.to(sites.like)

    def sample_continuous(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        q = self.amortized
        loc, raw_scale = self.refine(call, args, kwargs)
        return sample_normals(self.sites, call, (q.loc, q.raw_scale), (loc, raw_scale))

    def refine(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The local means and raw scales after the steps, (B, 1, ..., 1, L) each."""
        net = cast(nn.Module, self.amortized.net)  # there are local sites, or the guide would not have been made
        learning = torch.is_grad_enabled()
        loc, raw_scale = net(call.features).to(self.like).chunk(2, -1)
        step_loc, step_scale = self.log_step.exp()
        with torch.enable_grad():
            if not learning:
                loc, raw_scale = loc.detach().requires_grad_(), raw_scale.detach().requires_grad_()
            for _ in range(self.steps):
                bound = self._bound(loc, raw_scale, call, args, kwargs)
                to_loc, to_scale = torch.autograd.grad(bound, (loc, raw_scale), create_graph=learning)
                loc = loc + step_loc * scale_of(raw_scale) ** 2 * to_loc
                raw_scale = raw_scale + step_scale * to_scale
        return (loc, raw_scale) if learning else (loc.detach(), raw_scale.detach())

    def _bound(
        self, loc: Tensor, raw_scale: Tensor, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """The rows' bounds summed, but for what does not depend on the local posterior."""
        scale = scale_of(raw_scale)
        noise = scale * torch.randn_like(scale)
        plate = call.plates[str(self.sites.plate)]
        fixed, _ = self._values(self.sites.global_sites, self.amortized.loc, call)
        total: Any = scale.log().sum()
        for sign in (1.0, -1.0):
            values, ladj = self._values(self.sites.local_sites, loc + sign * noise, call)
            known = {**fixed, **values, str(self.sites.plate): plate.indices}
            # What is scaled to the whole data set counts as the rows at hand.
            total = total + 0.5 * (ladj + self._log_joint(known, args, kwargs) * plate.subsample_size / plate.size)
        return total

    def _values(self, sites: Sequence[Site], packed: Tensor | None, call: Call) -> tuple[dict[str, Tensor], Any]:
        """Values of the sites at packed numbers, and the log-determinant that their density takes; masks count."""
        values: dict[str, Tensor] = {}
        total: Any = 0.0
        if packed is None:
            return values, total
        for site, share in zip(sites, packed.split([s.size for s in sites], -1), strict=True):
            if site.name in call.absent:
                continue
            free = site.unpack(share)
            transform = biject_to(call.support(site))
            value = values[site.name] = transform(free)
            ladj = transform.log_abs_det_jacobian(free, value)
            ladj = sum_rightmost(ladj, ladj.dim() - value.dim() + site.event_dim)
            total = total + scale_and_mask(ladj, mask=call.masks.get(site.name)).sum()
        return values, total

    def _log_joint(self, values: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with poutine.block(), poutine.trace() as handler:
            poutine.condition(self.sites.program, data=values)(*args, **kwargs)
        total: Any = 0.0
        for site in sample_sites(handler.trace).values():
            total = total + scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"]).sum()
        return total
