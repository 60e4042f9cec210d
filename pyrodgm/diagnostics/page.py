"""What a page is made of: its style, numbers with their kind, and pictures inside the file."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pyrodgm.files import write_text

__all__ = ["KINDS", "Kind", "badge", "bits", "duration", "interval", "picture_html", "short", "write_page"]


class Kind(NamedTuple):
    """How a page shows a kind of held-out log-likelihood."""

    name: str
    meaning: str
    sign: str = ""  # before the number
    bits_sign: str = ""  # before its bits/dim


KINDS = {
    "exact": Kind("exact", "the model's own log p(x)"),
    "bound": Kind("lower bound", "by importance sampling; the model's own value may be larger",
                  "&ge;&#8239;", "&le;&#8239;"),
    "AIS estimate": Kind("estimate", "the normaliser by annealed importance sampling, which tends to flatter the model",
                         "&asymp;&#8239;", "&asymp;&#8239;"),
    "importance estimate": Kind("estimate", "the normaliser by importance sampling, which tends to flatter the model",
                                "&asymp;&#8239;", "&asymp;&#8239;"),
    "none": Kind("none", "no likelihood: this model can only be sampled; judge it by its samples"),
}  # fmt: skip

_STYLE = """
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;color:#2d3748;max-width:60rem;margin:2.5rem auto 4rem;
padding:0 1.2rem;background:#fff}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .3rem}
h2{font-size:1.15rem;margin:2.4rem 0 .8rem;border-bottom:1px solid #d9dee5;padding-bottom:.3rem}
p{margin:.5rem 0}p.lead{color:#4a5568;margin-top:0;max-width:56rem}a{color:#2b6c8f}
.note,figcaption{color:#66707d;font-size:.87rem;max-width:56rem}
.big{font-size:1.9rem;font-weight:600;margin-right:.35rem;white-space:nowrap}
.kind{display:inline-block;font-size:.78rem;font-weight:600;padding:.05rem .5rem;border-radius:1rem;white-space:nowrap}
.exact{background:#e3f1e4;color:#2c6335}.bound{background:#e1edf6;color:#22587a}
.estimate{background:#fbeedb;color:#8a5412}.none{background:#edf0f4;color:#5a6573}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;margin:.6rem 0}
td,th{text-align:left;padding:.4rem 1.4rem .4rem 0;border-bottom:1px solid #edf0f4;vertical-align:baseline}
th{font-weight:600;color:#4a5568;font-size:.85rem;white-space:nowrap}td.n,th.n{text-align:right;white-space:nowrap}
td:last-child,th:last-child{padding-right:0}table.facts th{width:9rem}
table.kinds{width:auto;margin:.4rem 0 0}table.kinds td{border:0;padding:.1rem .8rem .1rem 0;color:#4a5568}
code,pre{font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;background:#f5f7f9;border-radius:4px}
pre{padding:.7rem .9rem;overflow-x:auto;white-space:pre-wrap;margin:.3rem 0 1rem}
figure{margin:.8rem 0}img{max-width:100%;height:auto;display:block}figcaption{margin-top:.35rem}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:1.2rem 1.4rem;margin-top:1.2rem}
.wide{grid-template-columns:repeat(auto-fill,minmax(27rem,1fr))}
.pictures figure{margin:0}.pictures figcaption{margin:0 0 .35rem}figcaption b{color:#c2562d;font-size:.95rem}
figcaption b.real{color:#4a5568}
"""


def write_page(path: Path, title: str, body: str) -> Path:
    """Write a page that needs no other file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{html.escape(title)}</title><style>{_STYLE}</style></head>'
        f"<body>{body}</body></html>\n",
    )
    return path


def picture_html(png: bytes, text: str, caption: str = "", over: str = "") -> str:
    """A picture with the text for those who cannot see it, and HTML under or over it."""
    image = f'<img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
    over, caption = (f"<figcaption>{part}</figcaption>" if part else "" for part in (over, caption))
    return f"<figure>{over}{image}{caption}</figure>"


def interval(held_out: Mapping[str, Any]) -> str:
    """A log-likelihood with the sign of its kind and its standard error, as HTML."""
    if held_out["value"] is None:
        return "&ndash;"
    error = held_out["standard_error"]
    spread = "" if error is None else f" &plusmn; {error:.2f}"
    return f"{KINDS[held_out['kind']].sign}{_minus(held_out['value'], 2)}{spread}"


def bits(held_out: Mapping[str, Any]) -> str:
    """Bits/dim with the sign of their kind, as HTML."""
    value = held_out["bits_per_dim"]
    return "&ndash;" if value is None else f"{KINDS[held_out['kind']].bits_sign}{_minus(value, 3)}"


def badge(kind: str) -> str:
    """The name of a kind of log-likelihood, in its colour."""
    name = KINDS[kind].name
    return f'<span class="kind {name.split()[-1]}">{name}</span>'


def short(data: str) -> str:
    """A path by its last part, a name as it is."""
    return data.rsplit("/", 1)[-1]


def duration(seconds: float) -> str:
    """Seconds, or minutes where they are many."""
    return f"{seconds:.1f} s" if seconds < 90 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _minus(value: float, places: int) -> str:
    """A number with a minus sign as wide as a digit."""
    return f"{value:.{places}f}".replace("-", "\N{MINUS SIGN}")
