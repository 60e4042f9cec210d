"""Where a loss became nan or infinite: the parameter, the layer, or the sample site."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrodgm.core import GenerativeModel
from pyrodgm.objectives.base import Objective
from pyrodgm.traces import sample_sites

__all__ = ["bad_parameter", "find_nonfinite"]


def bad_parameter(model: GenerativeModel, objective: Objective) -> str | None:
    """The name of the first parameter that is not finite, found with one wait for the device."""
    named = [*model.named_parameters(), *((f"objective.{k}", p) for k, p in objective.named_parameters())]
    if not named:
        return None
    finite = torch.stack([torch.isfinite(p.detach()).all() for _, p in named]).tolist()
    return next((name for (name, _), good in zip(named, finite, strict=True) if not good), None)


def find_nonfinite(
    model: GenerativeModel, objective: Objective, x: Tensor, context: Tensor | None, n: int | None = None
) -> str | None:
    """One clause that names the first thing that is not finite, for the error message of a stopped run."""
    parameter = bad_parameter(model, objective)
    if parameter:
        return f"parameter {parameter!r} is not finite"
    layer = _first_layer(model, objective, x, context, n)
    if layer:
        return f"layer {layer!r} gives values that are not finite"
    return _first_site(model, x, context, n)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (tuple, list)):
        for part in output:
            yield from _tensors(part)


def _first_layer(
    model: GenerativeModel, objective: Objective, x: Tensor, context: Tensor | None, n: int | None
) -> str | None:
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not all(torch.isfinite(t).all() for t in _tensors(output)):
                found.append(name)

        return hook

    named = [*model.named_modules(), *((f"objective.{k}", m) for k, m in objective.named_modules() if k)]
    hooks = [m.register_forward_hook(watch(k)) for k, m in named if k]
    try:
        # The program may refuse its own nan: what was found before that is the answer.
        with suppress(Exception):
            list(objective(model, x, context, n=n))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _first_site(model: GenerativeModel, x: Tensor, context: Tensor | None, n: int | None) -> str | None:
    if model.family == "implicit":
        return None
    # A program that raises, whatever for, gives no reason: the search must not hide the error that it explains.
    with suppress(Exception), torch.no_grad():
        guide = poutine.trace(model.guide).get_trace(x, context, n=n)
        program = poutine.trace(poutine.replay(model, trace=guide)).get_trace(x, context, n=n)
        for trace, where in ((guide, "guide"), (program, "model")):
            for name, site in sample_sites(trace).items():
                if not torch.isfinite(site["value"]).all():
                    return f"site {name!r} of the {where} has values that are not finite"
                if not torch.isfinite(site["fn"].log_prob(site["value"])).all():
                    return f"site {name!r} of the {where} has a log_prob that is not finite"
    return None
