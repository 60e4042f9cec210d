r"""The contracts of every model: read this file first.

A generative model is one Pyro program ``p(x, z | context)`` with a guide. Four families ask
more of it, by what can be computed:

============  ==========================================  =================================
family        what is known                               what it answers
============  ==========================================  =================================
Tractable     :math:`\log p(x)` exactly                   ``condition``, ``log_prob``
Latent        a normalised joint :math:`p(x, z)`          ``log_weights``, ``posterior``
Energy        :math:`p(x)` up to its normaliser           ``energy``, ``log_partition``
Implicit      samples only                                ``generate``
============  ==========================================  =================================

Shapes: B rows, event (one or more dimensions), Z latent, K particles, C context.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ClassVar, overload

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.conditional import ConditionalDistribution
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.runtime import apply_stack
from pyro.poutine.subsample_messenger import SubsampleMessenger, _Subsample
from torch import Tensor, nn

from pyrodgm.draws import draw_from
from pyrodgm.traces import check_guide_sites, sample_sites, site_log_prob

__all__ = [
    "EmptyGuide",
    "Energy",
    "GenerativeModel",
    "Implicit",
    "Latent",
    "Tractable",
    "data_plate",
    "evaluating",
]

_SVI_IDS = itertools.count()
_ELEMENTS_PER_BATCH = 2**22  # sampling keeps at most so many numbers of the event in flight


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside the block; every submodule's mode is restored after it."""
    training = [m for m in module.modules() if m.training]
    if training:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m in training:
            m.training = True


@lru_cache
def _rows_of(size: int) -> _Subsample:
    return _Subsample(size, None)


class _DataPlate(pyro.plate):
    """``pyro.plate`` in fewer steps: its rows are given, and distributions of its shape are left alone."""

    @staticmethod
    def _subsample(name: str, size: Any = None, part: Any = None, subsample: Any = None, *_: Any) -> Any:
        site: Any = {"type": "sample", "name": name, "fn": _rows_of(size), "value": subsample}
        site |= {"args": (), "kwargs": {}, "infer": {}, "is_observed": False, "scale": 1.0, "mask": None}
        site |= {"cond_indep_stack": (), "done": False, "stop": False, "continuation": None}
        apply_stack(site)
        return size, len(site["value"]), site["value"]

    def _process_message(self, msg: Any) -> None:
        SubsampleMessenger._process_message(self, msg)
        if getattr(msg["fn"], "batch_shape", None) != (self.subsample_size,):
            BroadcastMessenger._pyro_sample(msg)


def data_plate(x: Tensor | None, context: Tensor | None, n: int | None) -> pyro.plate:
    """The plate "data" of a program: the rows at hand, scaled to the ``n`` rows that they stand for.

    Raises: ValueError if the rows of x and context differ, or n is less than the rows.
    """
    rows = len(x) if x is not None else len(context) if context is not None else 1 if n is None else n
    if x is not None and context is not None and len(x) != len(context):
        raise ValueError(f"expected one context row for each row of x, got {len(context)} for {len(x)}")
    if n is None or n == rows:
        return _DataPlate("data", rows, subsample=torch.arange(rows), dim=-1)
    if x is None:
        raise ValueError(f"expected n=None or n={rows} (the rows of context), got n={n}; repeat the context instead")
    if n < rows:
        raise ValueError(f"expected n >= {rows}, the rows of x; n is the size of the whole data set, got {n}")
    return _DataPlate("data", n, subsample=torch.arange(rows), dim=-1)


def _unwritten(model: nn.Module, method: str) -> NotImplementedError:
    """PyroModule's metaclass leaves no room for ABC's, so nothing refuses an abstract class when it is built."""
    return NotImplementedError(f"expected {type(model).__name__} to define {method}, got a class without it")


class EmptyGuide(nn.Module):
    """The guide of a model without latent sites: it samples nothing."""

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> None:
        return None


class GenerativeModel(nn.Module):
    r"""p(x | context) as one Pyro program: call it to run it, condition it to score.

    Subclasses set ``event_shape`` (a number D is (D,)) and ``context`` (the size C of the conditioning
    vector, 0 for none), may set ``guide``, and write ``forward``.

    Attributes:
        guide: module of the same signature that samples exactly the latent sites.
        event_shape: shape of one x.
        context: size of one context vector, 0 for an unconditional model.
        mixed_precision: whether its networks may compute in a shorter type than its distributions.
    """

    family: ClassVar[str] = "model"
    mixed_precision: ClassVar[bool] = True
    guide: nn.Module
    event_shape: torch.Size
    context: int

    def __init__(self, event_shape: int | tuple[int, ...], context: int = 0) -> None:
        super().__init__()
        event = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        if any(size < 1 for size in event):
            raise ValueError(f"expected an event shape of positive sizes, got {event}")
        if context < 0:
            raise ValueError(f"expected context >= 0 (the size of one context vector), got {context}")
        self.event_shape = torch.Size(event)
        self.context = context
        self.guide = EmptyGuide()

    @abstractmethod
    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        """Run the program: sites "z", ... and "x" inside ``pyro.plate("data")``.

        Args:
            x: rows to score, (B, *event); None draws them.
            context: (B, C).
            n: without x, how many rows to draw; with x, the size of the whole data set they stand for.
        Shapes: returns x, (B, *event).
        """
        raise _unwritten(self, "forward(x, context, n)")

    @property
    def support(self) -> Any:
        """The constraint that every x satisfies."""
        return torch.distributions.constraints.independent(torch.distributions.constraints.real, len(self.event_shape))

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the parameters."""
        found = self._first(torch.is_floating_point)
        return torch.get_default_dtype() if found is None else found.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        found = self._first(lambda tensor: True)
        return torch.device("cpu") if found is None else found.device

    def _first(self, wanted: Callable[[Tensor], bool]) -> Tensor | None:
        """The first such parameter, or else buffer, which may be of another type; quicker than ``parameters()``."""
        for kind in ("_parameters", "_buffers"):
            left: list[nn.Module | None] = [self]
            while left:
                module = left.pop()
                if module is None:
                    continue
                for tensor in getattr(module, kind).values():
                    if tensor is not None and wanted(tensor):
                        return tensor
                left.extend(reversed(module._modules.values()))
        return None

    @overload
    def check(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]: ...

    @overload
    def check(self, x: None, context: Tensor | None) -> tuple[None, Tensor | None]: ...

    def check(self, x: Tensor | None, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """x and context as the model computes with them, or an error that says how to mend them.

        Integers and booleans become the model's floating type.
        Raises: ValueError for a wrong shape; TypeError for another floating type.
        """
        if x is not None:
            x = self.check_x(x)
        if self.context and context is None:
            raise ValueError(f"expected context of shape (*, {self.context}), got none; pass context=")
        if context is not None:
            if not self.context:
                raise ValueError(
                    f"expected no context, got one of shape {tuple(context.shape)}; "
                    f"build {type(self).__name__}(..., context={context.shape[-1] if context.dim() else 1})"
                )
            context = self._as_float(context, "context")
            if context.dim() < 1 or context.shape[-1] != self.context:
                raise ValueError(
                    f"expected context of shape (*, {self.context}), got {tuple(context.shape)}; "
                    "class labels go in one-hot"
                )
        return x, context

    def check_x(self, x: Tensor) -> Tensor:
        """x of :meth:`check`, without a context."""
        x = self._as_float(x, "x")
        event = self.event_shape
        if x.shape[x.dim() - len(event) :] != event or x.dim() < len(event):
            raise ValueError(
                f"expected x of shape (*, {', '.join(map(str, event))}), got {tuple(x.shape)}; "
                f"build {type(self).__name__} for that event shape or reshape x"
            )
        return x

    def _as_float(self, value: Tensor, name: str) -> Tensor:
        if not isinstance(value, Tensor):
            raise TypeError(f"expected {name} as a torch.Tensor, got {type(value).__name__}; use torch.as_tensor")
        dtype = self.dtype
        if value.dtype == dtype:
            return value
        if value.is_complex() or value.is_floating_point():
            raise TypeError(
                f"expected {name} of {dtype}, got {value.dtype}; use {name}.to({dtype}) or model.to({value.dtype})"
            )
        return value.to(dtype)

    @torch.no_grad()
    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set what starts from data (an actnorm's shift and scale) by rows x (B, *event); ``fit`` calls it once.

        Parts that have started, also in an earlier run, keep what they have.
        """

    def sample(self, n: int | None = None, context: Tensor | None = None, *, batch_size: int | None = None) -> Tensor:
        """Ancestral samples without gradients, in eval mode, in batches that fit memory.

        Args:
            n: draws for each context; None draws one and drops the leading dimension.
            context: (*B, C).
            batch_size: rows drawn at once; the default bounds the memory of one event.
        Shapes: returns (n, *B, *event).
        """
        if n is not None and (not hasattr(n, "__index__") or n < 1):
            raise ValueError(f"expected n >= 1 samples, a whole number, got {n}")
        _, context = self.check(None, context)
        lead = (() if n is None else (n,)) + (() if context is None else tuple(context.shape[:-1]))
        rows = math.prod(lead)
        if not rows:  # no context
            return torch.empty(*lead, *self.event_shape, dtype=self.dtype, device=self.device)
        flat = None if context is None else context.expand(*lead, self.context).reshape(rows, self.context)
        step = batch_size or max(1, _ELEMENTS_PER_BATCH // max(1, self.event_shape.numel()))
        with evaluating(self), poutine.block():
            parts = [
                self._draw(min(step, rows - i), None if flat is None else flat[i : i + step])
                for i in range(0, rows, step)
            ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(*lead, *self.event_shape)

    def _draw(self, rows: int, context: Tensor | None) -> Tensor:
        """``rows`` fresh rows, one for each context row where there is a context."""
        return self(context=context, n=rows)

    def svi(self) -> tuple[Callable[..., Tensor], Callable[..., Any]]:
        """The (model, guide) pair for a stock ``pyro.infer.SVI`` script.

        The parameters are registered in Pyro's store under a name of this model alone, so two
        models of one class train side by side; the model stays picklable.
        """
        name = self.__dict__.setdefault("_svi_name", f"{type(self).__name__}-{next(_SVI_IDS)}")

        def model(x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
            for key, parameter in self.named_parameters():
                if parameter.requires_grad:
                    pyro.param(f"{name}$$${key}", parameter)
            return self(x, context, n=n)

        def guide(x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Any:
            return self.guide(x, context, n=n)

        return model, guide

    def __getstate__(self) -> dict[str, Any]:
        # pyro.param hangs a weak reference on each parameter, which cannot be pickled; Pyro sets it anew when read.
        for parameter in self.parameters():
            parameter.__dict__.pop("unconstrained", None)
        return {k: v for k, v in self.__dict__.items() if k != "_svi_name"}


class Tractable(GenerativeModel):
    r"""A model whose density is exact: a conditional distribution with parameters.

    Subclasses write :meth:`condition`. What it returns is an ordinary Pyro distribution, so a
    member is a prior, a decoder, a guide or a likelihood wherever a program samples.

    Example:
        >>> class Laplace(Tractable):
        ...     def __init__(self):
        ...         super().__init__((2,))
        ...         self.loc = nn.Parameter(torch.zeros(2))
        ...     def condition(self, context=None):
        ...         return pyro.distributions.Laplace(self.loc, 1.0).to_event(1)
        >>> Laplace().log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    family: ClassVar[str] = "tractable"

    @abstractmethod
    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        """The distribution p(x | context); its batch shape is the context's, (*B, C) -> (*B).

        It is of the parameters as they are now: make another after a step.
        """
        raise _unwritten(self, "condition(context)")

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """log p(x | context) in nats, (*B, *event), (*B, C) -> (*B)."""
        return self.condition(context).log_prob(self.check_x(x))

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, context = self.check(x, context)
        with data_plate(x, context, n):
            return pyro.sample("x", self.condition(context), obs=x)

    def _draw(self, rows: int, context: Tensor | None) -> Tensor:
        return draw_from(self.condition(context), () if context is not None else (rows,))

    @property
    def support(self) -> Any:
        with torch.no_grad():
            context = torch.zeros(self.context, dtype=self.dtype, device=self.device) if self.context else None
            return self.condition(context).support


ConditionalDistribution.register(Tractable)  # type: ignore[type-abstract]


class Latent(GenerativeModel):
    """A normalised joint p(x, z | context) with a guide q(z | x, context).

    Subclasses write ``forward`` and set ``guide``; the latent sites lie inside the data plate.

    Example:
        >>> from pyrodgm.guides import MeanField, Sites
        >>> class Scale(Latent):
        ...     def forward(self, x=None, context=None, *, n=None):
        ...         x, context = self.check(x, context)
        ...         with data_plate(x, context, n):
        ...             z = pyro.sample("z", pyro.distributions.LogNormal(0.0, 1.0))
        ...             return pyro.sample("x", pyro.distributions.Normal(0.0, z.unsqueeze(-1)).to_event(1), obs=x)
        >>> model, x = Scale((3,)), torch.randn(5, 3)
        >>> model.guide = MeanField(Sites(model, (x,)))
        >>> model.log_weights(x, particles=10).shape
        torch.Size([10, 5])
    """

    family: ClassVar[str] = "latent"

    def log_weights(
        self, x: Tensor, context: Tensor | None = None, *, particles: int = 1, n: int | None = None
    ) -> Tensor:
        r"""Importance weights :math:`\log p(x, z_k) - \log q(z_k | x)`, :math:`z_k \sim q`, in nats.

        ELBO, IWAE, Renyi bounds and held-out likelihood are means of these.

        Shapes: x (B, *event) -> (K, B).
        Raises: ValueError if the guide samples a site outside the data plate: that one has no weight of its row; under
            Pyro's validation, also if its sites are not the program's latent ones; for x that is not rows and for
            particles < 1.
        """
        x, context = self.check_rows(x, context)
        if particles < 1:
            raise ValueError(f"expected particles >= 1, got {particles}")
        return self.weigh(self.particle_trace(self.guide, particles, x, context, n), particles, x, context, n)

    def weigh(
        self, guide_trace: Any, particles: int, x: Tensor, context: Tensor | None = None, n: int | None = None
    ) -> Tensor:
        """The importance weights of what the guide drew in a :meth:`particle_trace`, (K, B)."""
        model_trace = self.particle_trace(poutine.replay(self, trace=guide_trace), particles, x, context, n)
        check_guide_sites(guide_trace, model_trace)
        log_p = self.row_log_prob(model_trace)
        log_q = self.row_log_prob(guide_trace)
        return (log_p - log_q).expand(particles, len(x))

    def check_rows(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As :meth:`check`, for x of one leading dimension, the rows.

        Raises: ValueError for a lone row without it, or for more dimensions.
        """
        x, context = self.check(x, context)
        if x.dim() != 1 + len(self.event_shape):
            event = ", ".join(map(str, self.event_shape))
            raise ValueError(f"expected x of shape (rows, {event}), got {tuple(x.shape)}; reshape it to rows")
        return x, context

    @staticmethod
    def particle_trace(
        program: Callable[..., Any],
        particles: int,
        x: Tensor | None,
        context: Tensor | None = None,
        n: int | None = None,
    ) -> Any:
        """The Pyro trace of a program run for K = ``particles`` draws of each row: batch shapes (K, B)."""
        with poutine.trace() as handler, pyro.plate("particles", particles, dim=-2):
            program(x, context, n=n)
        return handler.trace

    @staticmethod
    def row_log_prob(trace: Any) -> Tensor:
        """The log-probabilities of a trace's sites summed for each row, the plates' scale left out."""
        total: Any = 0.0
        for name, site in sample_sites(trace).items():
            if not any(frame.name == "data" for frame in site["cond_indep_stack"]):
                raise ValueError(
                    f"site {name!r} lies outside the data plate, so rows have no weights of their own; "
                    "use an ELBO for programs with global latents"
                )
            total = total + site_log_prob(site)
        return total

    def posterior(self, x: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """The guide's q(z | x, context) as a distribution, batch shape (B,).

        Raises: TypeError if the guide is a program of several sites, which has no one distribution of its own.
        """
        condition, given = getattr(self.guide, "condition", None), self.check(x, context)
        if condition is not None:
            return condition(*given)
        with poutine.block():
            sites = sample_sites(poutine.trace(self.guide).get_trace(*given))
        if len(sites) != 1:
            raise TypeError(
                f"expected a guide with condition(x, context) or of one site, got {type(self.guide).__name__} of "
                f"{sorted(sites)}; trace it"
            )
        return next(iter(sites.values()))["fn"]

    def reconstruct(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x drawn again from z ~ q(z | x): (B, *event) -> (B, *event), in eval mode."""
        x, context = self.check_rows(x, context)
        with evaluating(self), poutine.block():
            trace = poutine.trace(self.guide).get_trace(x, context)
            return poutine.replay(self, trace=trace)(None, context, n=len(x))

    def complete(self, x: Tensor, mask: Tensor, context: Tensor | None = None, *, steps: int = 100) -> Tensor:
        """Fill in what is missing: draws from p(x_missing | x_observed) by Metropolis within Gibbs.

        The guide proposes z, the exact importance ratio accepts it, the likelihood proposes the missing part, so the
        chain leaves the model's own conditional invariant whatever the guide. Where a chain mixes badly there is
        importance resampling, :func:`pyrodgm.latent.resample_missing`.

        Args:
            x: (B, *event); what stands where mask is False does not matter.
            mask: True where x is observed, broadcast against x.
            context: (B, C).
            steps: sweeps of the chain.
        Shapes: returns (B, *event); the observed part is x itself.
        Raises: TypeError if the coordinates are dependent given z (a flow or MADE as likelihood): the missing ones are
            then no plain draw from it, or for a mask that is not boolean; ValueError if the mask does not fit x, or
            if what is observed is not finite, or for steps < 0.
        Source: Mattei and Frellsen (2018), arXiv:1802.04826, algorithm 2.
        """
        from pyrodgm.latent.completion import draw_missing  # which is made of what stands in this file

        return draw_missing(self, x, mask, context, steps)


class Energy(GenerativeModel):
    r"""A density known up to its normaliser: :math:`p(x) = \exp(-E(x)) / Z`.

    Subclasses write :meth:`energy` and :meth:`start`, and set ``kernel``, a Markov kernel that leaves p invariant.

    Attributes:
        kernel: see :mod:`pyrodgm.kernels.base`.
        sample_steps: kernel steps from :meth:`start` to what ``sample`` returns.
        negative_steps: kernel steps from the data to the negatives of a gradient.
    Example:
        >>> from pyrodgm.kernels import MALA
        >>> class Ring(Energy):
        ...     kernel = MALA(0.3)
        ...     def energy(self, x, context=None):
        ...         return 10 * (x.norm(dim=-1) - 2).square()
        ...     def start(self, n, context=None):
        ...         return 2 * torch.nn.functional.normalize(torch.randn(n, 2), dim=-1)
        >>> Ring((2,)).sample(5).shape
        torch.Size([5, 2])
    """

    family: ClassVar[str] = "energy"
    kernel: Any
    sample_steps: int = 1000
    negative_steps: int = 1

    @abstractmethod
    def energy(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """E(x), (*B, *event) -> (*B)."""
        raise _unwritten(self, "energy(x, context)")

    @abstractmethod
    def start(self, n: int, context: Tensor | None = None) -> Tensor:
        """Where ``n`` chains begin, (n, *event)."""
        raise _unwritten(self, "start(n, context)")

    @abstractmethod
    def log_partition(self, method: str = "ais", **options: Any) -> tuple[Tensor, Tensor]:
        """log Z and its standard error (0 where it is exact), in nats."""
        raise _unwritten(self, "log_partition(method)")

    @property
    def moves_hidden(self) -> bool:
        """Whether the kernel's positions are other units than x, or more, so that only ``run_kernel`` can use it."""
        return False

    def run_kernel(
        self, x: Tensor, context: Tensor | None, steps: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """x after ``steps`` moves of the kernel, without gradients, one chain a row."""
        with torch.no_grad():
            state = self.kernel.init(self.potential(context), x)
            for _ in range(steps):
                state, _ = self.kernel.step(state, generator)
            return state.positions

    def potential(self, context: Tensor | None = None) -> Any:
        """What ``kernel.init`` wants: E(. | context) as a function of positions (chains, *event)."""
        return lambda x: self.energy(x, context)

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        """The distribution, unnormalised (and it says so): samples by the kernel, log_prob is -E(x)."""
        from pyrodgm.distributions.unnormalised import Unnormalised

        return Unnormalised(self, context)

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        x, context = self.check(x, context)
        with data_plate(x, context, n):
            return pyro.sample("x", self.condition(context), obs=x)

    def _draw(self, rows: int, context: Tensor | None) -> Tensor:
        return self.run_kernel(self.start(rows, context), context, self.sample_steps)


class Implicit(GenerativeModel):
    """A model that can only be sampled: x = generate(z, context), z ~ prior.

    Its program has the sites "z" and "x"; the site "x" has no density and says so when asked.

    Args:
        event_shape: of one x; a number D is (D,).
        prior: distribution of z, a :class:`Tractable` of event shape (Z,).
        context: size C of the conditioning vector, 0 for none.
    """

    family: ClassVar[str] = "implicit"

    def __init__(self, event_shape: int | tuple[int, ...], prior: Tractable, context: int = 0) -> None:
        super().__init__(event_shape, context)
        self.prior = prior
        self.guide = PriorGuide(prior)

    @abstractmethod
    def generate(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """x for each latent, (B, Z) -> (B, *event), with gradients."""
        raise _unwritten(self, "generate(z, context)")

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        from pyrodgm.distributions.implicit import Generated

        x, context = self.check(x, context)
        with data_plate(x, context, n):
            z = pyro.sample("z", self.prior.condition())
            return pyro.sample("x", Generated(self.generate(z, context), len(self.event_shape)), obs=x)


class PriorGuide(nn.Module):
    """The guide of an implicit model: z from its prior, whatever x is."""

    def __init__(self, prior: Tractable) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, x: Tensor | None = None, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        with data_plate(x, context, n):
            return pyro.sample("z", self.prior.condition())
