"""The joint density of a program whose discrete sites are enumerated, all of them summed out in logs."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Any

import torch
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from torch import Tensor

from pyrodgm.traces import sample_sites

__all__ = ["summed_log_prob"]


def summed_log_prob(trace: Any) -> Tensor:
    r"""log p of a trace under ``poutine.enum``, its enumerated sites summed out, ().

    .. math:: \log \sum_{k_1} \dots \sum_{k_n} \prod_i p_i(k_1, \dots, k_n)

    Sites may be a Markov chain (``pyro.markov`` gives one dimension to many of them) and lie in plates that cross, or
    that are loops.

    Raises: ValueError if the sum has no order that is not exponential in the size of a plate.
    Source: Obermeyer et al. (2019), Tensor variable elimination for plated factor graphs, arXiv:1902.03210; the order
        is Pyro's, the sums are ours, since Pyro's have no rule in ``torch.func``.
    """
    trace.compute_log_prob()
    trace.pack_tensors()
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for site in sample_sites(trace).values():
        plates = frozenset(trace.plate_to_symbol[f.name] for f in site["cond_indep_stack"] if f.vectorized)
        factors.setdefault(plates, []).append(site["packed"]["log_prob"])
    enumerated = set(trace.symbol_to_dim) - set(trace.plate_to_symbol.values())
    try:
        return contract_to_tensor(factors, enumerated, ring=_Logs())
    except NotImplementedError as error:
        raise ValueError(
            "expected discrete sites that can be summed out plate by plate, got some in plates that cross, and a site "
            "that depends on both, whose sum is exponential in a plate's size; make one plate a loop"
        ) from error


class _Logs(LogRing):
    """Pyro's sums of products in logs, with sums that ``torch.func`` differentiates and that do not underflow."""

    def sumproduct(self, terms: Iterable[Any], dims: Collection[str]) -> Any:
        """The product of the terms, summed over ``dims``, each time over the one whose product is smallest."""
        left = {id(term): term for term in terms}
        holders = {d: [term for term in left.values() if d in term._pyro_dims] for d in sorted(dims)}
        sizes = {d: _size(held) for d, held in holders.items()}
        while sizes:
            dim = min(sizes, key=sizes.__getitem__)
            del sizes[dim]
            used = holders.pop(dim)
            for term in used:
                del left[id(term)]
            new = _summed(_product(used), dim)
            left[id(new)] = new
            for d in sizes.keys() & set(new._pyro_dims):
                holders[d] = [term for term in holders[d] if id(term) in left] + [new]
                sizes[d] = _size(holders[d])
        return _product(left.values())


def _size(terms: Iterable[Any]) -> int:
    """How many numbers the product of the terms has."""
    return math.prod({d: n for term in terms for d, n in zip(term._pyro_dims, term.shape, strict=True)}.values())


def _product(terms: Collection[Any]) -> Any:
    dims = "".join(sorted(set().union(*(term._pyro_dims for term in terms))))
    found: Any = sum(_aligned(term, dims) for term in terms)
    found._pyro_dims = dims
    return found


def _aligned(term: Any, dims: str) -> Tensor:
    """With its dimensions in the order of ``dims``, and ones where it has none."""
    own = term._pyro_dims
    places = tuple(slice(None) if d in own else None for d in dims)
    return term.permute([own.index(d) for d in dims if d in own])[places]


def _summed(term: Any, dim: str) -> Any:
    at = term._pyro_dims.index(dim)
    never = (term == -torch.inf).all(at, keepdim=True)  # its gradient would be inf - inf
    found: Any = term.masked_fill(never, 0.0).logsumexp(at).masked_fill(never.squeeze(at), -torch.inf)
    found._pyro_dims = term._pyro_dims.replace(dim, "")
    return found
