"""Contrastive divergence: the likelihood gradient of an energy model from its kernel's negatives."""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

from torch import Tensor

from pyrodgm.core import Energy, GenerativeModel, evaluating
from pyrodgm.energy.gap import Gap, Offsets
from pyrodgm.evaluation.two_sample import energy_distance
from pyrodgm.kernels.base import refuse_memory
from pyrodgm.objectives.centring import RunningOffsets
from pyrodgm.objectives.machines import MachineObjective
from pyrodgm.seeding import random_state
from pyrodgm.shapes import join_context

__all__ = ["ContrastiveDivergence", "Layered"]

_CHAINS_SEED = 2008
_HELD_OUT_NEGATIVES = 256  # each costs sample_steps moves of the kernel


@runtime_checkable
class Layered(Protocol):
    """A machine of two layers, whose energy gap has a gradient in closed form."""

    def energy_gap(self, x: Tensor, negatives: Tensor, offsets: Offsets | None = None) -> Gap:
        """Mean energy of rows less that of negatives; the centred gradient with offsets."""

    def offsets(self) -> Offsets:
        """Where the offsets start."""


class ContrastiveDivergence(MachineObjective):
    r"""CD-k, and persistent CD: data go down in energy, the model's own negatives go up.

    .. math:: L = \frac1B \sum_i E(x_i) - \frac1M \sum_m E(x^-_m), \qquad
        \nabla L \to -\nabla \frac1B \sum_i \log p(x_i) \text{ as } x^- \to p

    The negatives are ``k`` moves of the model's kernel, without gradients, from the rows (CD-k) or from
    where the last step left the chains (persistent). The chains are saved with the objective. L itself
    is an energy gap and no likelihood; :meth:`held_out` is a negative log-likelihood, exact where
    ``model.enumerable`` and with log Z by a short run of AIS elsewhere. For a conditional model that
    cannot be enumerated, where every context has a log Z, it is the energy distance between the
    rows and samples.

    The optimiser is SGD with momentum 0.5. ``weight_cost`` is its weight decay, :math:`\nabla_W L + \lambda W` for
    parameters of two dimensions or more; biases have none. ``centered`` gives an RBM the centred gradient of
    :func:`pyrodgm.energy.gap.energy_gap`, with running means of both layers on the data; it bears a larger learning
    rate (0.1). For the likelihood let the rate fall to zero at the end.

    Args:
        k: moves of the kernel.
        persistent: keep the chains from step to step.
        chains: M, how many persistent chains; default 100.
        weight_cost: lambda, of the objective's own optimiser; for another make groups by :func:`weight_groups`.
        centered: for machines of two layers without context.
    Raises: ValueError for k < 1, for chains without persistent, for a weight cost below 0, from ``fit`` for a weight
        cost beside an optimiser of your own, and from ``check`` for persistent chains or centring of a conditional
        model, whose contexts change with the batch; TypeError from ``check`` for centring of another model.
    Source: Hinton (2002), Training products of experts; Tieleman (2008), Training restricted
        Boltzmann machines using approximations to the likelihood gradient; Hinton (2010), A practical guide to
        training restricted Boltzmann machines (momentum, weight cost); Melchior, Fischer and
        Wiskott (2016), How to center deep Boltzmann machines, JMLR 17.
    Example:
        >>> import torch
        >>> from pyrodgm.energy import RBM
        >>> objective = ContrastiveDivergence(k=2, persistent=True, chains=8)
        >>> objective.loss(RBM(visible=6, hidden=3), torch.ones(4, 6)).shape
        torch.Size([])
    """

    held_out_name = "exact negative log-likelihood"
    lr = 0.05
    chains_in = "negatives"
    negatives: Tensor | None

    def __init__(
        self,
        k: int = 1,
        persistent: bool = False,
        chains: int | None = None,
        *,
        weight_cost: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(weight_cost, centered)
        if k < 1:
            raise ValueError(f"expected k >= 1 moves of the kernel, got {k}")
        if chains is not None and (chains < 1 or not persistent):
            raise ValueError(f"expected chains=None, or chains >= 1 with persistent=True, got chains={chains}")
        self.k = k
        self.persistent = persistent
        self.chains = 100 if chains is None else chains

    def check(self, model: GenerativeModel) -> None:
        if not isinstance(model, Energy):
            raise TypeError(
                f"expected an energy model for contrastive divergence, got {type(model).__name__}; "
                "its family has a likelihood or a bound to fit by"
            )
        refuse_memory(model.kernel, "negatives")
        # a BoltzmannMachine has its couplings in a vector, beside which a context has biases of two dimensions
        if self.weight_cost and (hasattr(model, "coupling") or all(p.dim() < 2 for p in model.parameters())):
            raise ValueError(
                f"expected weight_cost=0 for a {type(model).__name__}, whose couplings are one vector, got "
                f"{self.weight_cost}; pass optimizer= with a decay of its own for them"
            )
        if self.persistent and model.context:
            raise ValueError(
                "expected a model without context for persistent chains, since each chain would need the context "
                "that it was run under; use ContrastiveDivergence(k, persistent=False)"
            )
        if self.offsets is not None:
            self._check_offsets(model, self.offsets)
        if _enumerable(model):
            self.held_out_name = ContrastiveDivergence.held_out_name
        else:
            self.held_out_name = "energy distance" if model.context else "negative log-likelihood by AIS"
        if self.persistent:
            self._check_chains(model)

    def begin(self, rows: Tensor) -> None:
        """Let the chains go on from ``rows`` (M, *event), for a model that has been trained already.

        Raises: ValueError for an objective that is not persistent.
        """
        if not self.persistent:
            raise ValueError("expected persistent=True for chains that begin somewhere, got persistent=False")
        self.negatives, self.chains = rows.detach().clone(), len(rows)

    def loss(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None) -> Tensor:
        return self.gap(model, x, context)[0]

    def gap(self, model: GenerativeModel, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss and its negatives: (), (M, *event)."""
        model = self._energy_model(model)
        x, context = model.check(x, context)
        start = x if self.negatives is None else self.negatives.to(x)
        negatives = model.run_kernel(start, context, self.k).detach()
        if self.negatives is not None:
            self.negatives.copy_(negatives)
        if context is not None or not isinstance(model, Layered):
            return model.energy(x, context).mean() - model.energy(negatives, context).mean(), negatives
        if self.offsets is None:
            return model.energy_gap(x, negatives).value, negatives
        gap = model.energy_gap(x, negatives, self.offsets.current())
        self.offsets.follow(gap.means)
        return gap.value, negatives

    def _energy_model(self, model: GenerativeModel) -> Energy:
        self.check(model)
        return cast(Energy, model)

    def _check_chains(self, model: Energy) -> None:
        if self.negatives is None:
            # here and not in loss, whose traced form needs every buffer to be there; a fixed seed of their
            # own, so that neither the caller's random numbers nor the run's depend on when they were made
            with random_state(model.device, _CHAINS_SEED):
                self.negatives = model.start(self.chains).detach()
        if self.negatives.shape[1:] != model.event_shape:
            raise ValueError(
                f"expected a model of the chains' event shape {tuple(self.negatives.shape[1:])}, "
                f"got {tuple(model.event_shape)}; make one ContrastiveDivergence for each model"
            )

    def _check_offsets(self, model: Energy, running: RunningOffsets) -> None:
        if not isinstance(model, Layered):
            raise TypeError(
                f"expected a machine of two layers (RBM, TwinRBM) to centre, got {type(model).__name__}; "
                "use centered=False"
            )
        if model.context:
            raise ValueError(
                "expected a model without context to centre, since the offsets would be those of one context; "
                "use centered=False"
            )
        running.start(model.offsets())

    def held_out(
        self, model: GenerativeModel, x: Tensor, context: Tensor | None = None, *, n: int | None = None
    ) -> Tensor:
        """The score of the rows, see the class."""
        model = self._energy_model(model)
        x, context = model.check(x, context)
        with evaluating(model):
            if _enumerable(model):
                nll: Tensor = -model.log_prob(x, context).mean()  # type: ignore[operator]
                return nll
            if context is None:
                return (model.energy(x).double() + self._log_partition(model)).mean()
            if len(x) == 1:  # a distance needs two rows; two equal ones are no distance apart
                x, context = x.expand(2, *x.shape[1:]), context.expand(2, -1)
            context_of = context[:_HELD_OUT_NEGATIVES]
            negatives = join_context(model.sample(context=context_of).flatten(1), context_of)
            return energy_distance(join_context(x.flatten(1), context), negatives.flatten(1))


def _enumerable(model: Energy) -> bool:
    return bool(getattr(model, "enumerable", False))
