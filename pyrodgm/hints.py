"""What somebody may have meant by a name that nobody has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

__all__ = ["did_you_mean"]


def did_you_mean(word: str, known: Iterable[str] | Mapping[str, str], at_most: int = 1) -> str:
    """A question to put into an error, ending in a space: the known names closest to a word; empty where none is close.

    Args:
        word: what came.
        known: the names there are; of a mapping the keys are compared and the values named.
        at_most: how many names.
    Example:
        >>> did_you_mean("epoch", ["epochs", "steps"])
        'did you mean epochs? '
        >>> did_you_mean("realnvp2", {"realnvp": "RealNVP"})
        'did you mean RealNVP? '
        >>> did_you_mean("x", ["epochs"])
        ''
    """
    names = known if isinstance(known, Mapping) else {name: name for name in known}
    close = difflib.get_close_matches(word, list(names), n=at_most)
    return f"did you mean {' or '.join(names[c] for c in close)}? " if close else ""
