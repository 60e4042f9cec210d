"""The plain arguments of a member, of its objective and of ``fit``: what a command line can say."""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, get_args, get_origin

from pyrodgm.engine import fit
from pyrodgm.engine.batches import check_shares
from pyrodgm.engine.fabric import SPAWNED, make_fabric
from pyrodgm.engine.settings import Settings
from pyrodgm.hints import did_you_mean
from pyrodgm.members import Member

__all__ = ["check_fit", "check_names", "completed", "listed", "objective_arguments", "plain_arguments"]

_OF_A_RUN = ("model", "data", "context", "validate", "csv", "checkpoint", "objective")  # which it chooses itself
_OF_THE_DATA = ("features", "visible", "event_shape", "context")


def plain_arguments(which: Member) -> dict[str, inspect.Parameter]:
    """The arguments of a member that are plain values and do not follow from the data.

    A member with conditionals has ``components`` besides, of those of real data.
    """
    parameters = inspect.signature(which.build(), eval_str=True).parameters
    found = {name: p for name, p in parameters.items() if name not in _OF_THE_DATA and _is_simple(p.annotation)}
    for name, value in which.defaults:
        found[name] = found[name].replace(default=value)
    if "conditional" in parameters:
        kind = inspect.Parameter.KEYWORD_ONLY
        found["components"] = inspect.Parameter("components", kind, default=None, annotation=int | None)
    return found


def objective_arguments(which: Member) -> dict[str, inspect.Parameter]:
    """The arguments of a member's objective that are plain values."""
    build = which.build_objective()
    if build is None:
        return {}
    known = inspect.signature(build, eval_str=True).parameters
    found = {k: p for k, p in known.items() if _is_simple(p.annotation)}
    for name, value in which.settings:
        found[name] = found[name].replace(default=value)
    return found


def completed(which: Member, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with the defaults of today, so that a run stays what it is when a default changes.

    Raises: ValueError for an argument that the member does not have, or one that it needs.
    """
    known = plain_arguments(which)
    check_names(which.name, arguments, known)
    defaults = {k: p.default for k, p in known.items() if p.default is not inspect.Parameter.empty}
    merged = defaults | dict(arguments)
    if missing := [k for k in known if k not in merged]:
        name = missing[0]
        raise ValueError(f"{which.name} needs {name}: pass arguments={{{name!r}: ...}} (--{name} on the command line)")
    return {k: listed(v) for k, v in merged.items()}


def check_names(owner: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise ValueError, with the closest right one, for a name that ``owner`` does not have."""
    known = list(known)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise ValueError(f"{owner} has no argument {name!r}: {hint}expected {', '.join(known) or 'none'}")


def check_fit(options: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError for arguments that :func:`pyrodgm.fit` would refuse, or a run cannot have."""
    parameters = inspect.signature(fit).parameters
    check_names("fit", options, [name for name in parameters if name not in _OF_A_RUN])
    values = {name: p.default for name, p in parameters.items()} | dict(options)
    # a run has a folder for its checkpoints, and held-out rows
    settings = Settings(**{f.name: values[f.name] for f in fields(Settings)} | {"checkpoint": "checkpoint"})
    settings = settings.checked(held_out=True)
    fabric = make_fabric(str(values["device"]), *(values[name] for name in ("precision", "strategy", "devices")))
    check_shares(settings.batch_size, fabric.world_size)
    if fabric.world_size > 1 and values["strategy"] not in SPAWNED:
        raise ValueError(
            f'expected strategy="ddp_spawn" for a run folder by {fabric.world_size} processes, of which one writes it, '
            f"got {values['strategy']!r}"
        )


def listed(value: Any) -> Any:
    """A tuple as the list that JSON has."""
    return list(value) if isinstance(value, tuple) else value


def _is_simple(hint: Any) -> bool:
    """Whether a type hint is a number, a text, a truth value, a sequence of these, or None."""
    if get_origin(hint) is collections.abc.Callable:
        return False
    parts = [part for part in get_args(hint) if part is not Ellipsis]
    if parts:  # X | None, Sequence[X], tuple[X, ...], Literal[...]
        return all(_is_simple(part) for part in parts)
    return hint in (int, float, str, bool, type(None)) or isinstance(hint, str | int)
