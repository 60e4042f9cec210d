"""Where a loss became nan or infinite: the parameter, the layer, or the sample site."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

from pyrodgm.core import GenerativeModel, sample_sites
from pyrodgm.objectives.base import Objective

__all__ = ["find_nonfinite"]


def find_nonfinite(model: GenerativeModel, objective: Objective, x: Tensor, context: Tensor | None) -> str:
    """One clause that names the first thing that is not finite, for the error message of a stopped run."""
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        if not torch.isfinite(parameter).all():
            return f"parameter {name!r} is not finite"
    layer = _first_layer(model, objective, x, context)
    if layer:
        return f"layer {layer!r} gives values that are not finite"
    return _first_site(model, x, context) or "the parameters and layers are finite, the loss is not"


def _first_layer(model: GenerativeModel, objective: Objective, x: Tensor, context: Tensor | None) -> str | None:
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(name)

        return hook

    named = [*model.named_modules(), *((f"objective.{k}", m) for k, m in objective.named_modules())]
    hooks = [m.register_forward_hook(watch(k)) for k, m in named if k and not list(m.children())]
    try:
        for _ in objective(model, x, context):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def _first_site(model: GenerativeModel, x: Tensor, context: Tensor | None) -> str | None:
    if model.family == "implicit":
        return None
    with torch.no_grad():
        guide = poutine.trace(model.guide).get_trace(x, context)
        program = poutine.trace(poutine.replay(model, trace=guide)).get_trace(x, context)
    for trace, where in ((guide, "guide"), (program, "model")):
        for name, site in sample_sites(trace).items():
            if not torch.isfinite(site["value"]).all():
                return f"site {name!r} of the {where} has values that are not finite"
            if not torch.isfinite(site["fn"].log_prob(site["value"])).all():
                return f"site {name!r} of the {where} has a log_prob that is not finite"
    return None
