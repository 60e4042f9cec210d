"""Flows and MADE beside the peers: training step, log_prob, sampling and reverse-KL step over the bare matrix products.

The floor is the same networks without anything but their linear layers: forward, backward (with the
gradients that the flow needs of the layers' inputs) and fused Adam on the same parameters. All
contenders get fused Adam and run without argument validation, as ``pyrodgm.fit`` does after its first step.
What takes a peer D passes is repeated three times only.

``--compile`` adds torch.compile of pyrodgm and of the peers that it can take, ``--jax`` flowjax under jit.

To add a case: a line in CASES. To add a library: a maker in couplings.py and autoregressive.py.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from apart import in_turns
from autoregressive import autoregressive
from contenders import Contender, reverse_kl
from couplings import couplings
from flows_image import glow_image, glow_vectors
from jax_flows import Jitted, flowjax
from masked import made
from planars import planars
from timing import arguments, hardware, interleave, step, table
from torch import Tensor

Case = tuple[Callable[[str], tuple[list[Contender], Tensor]], tuple[str, ...], Callable[[], Jitted] | None]

FAST = ("train", "log_prob", "sample", "vi")
MAF = ("train", "log_prob", "sample")  # a differentiable draw takes the peers D passes forwards and back: --sequential
IAF = ("sample", "vi")  # and so does scoring data

WIDE, NARROW = (512, 512), (256, 256)

CASES: dict[str, Case] = {
    "MADE D=123, hidden 500, batch 100": (lambda device: made(123, 100, device), MAF, None),
    "MADE D=784, hidden 500, batch 100": (lambda device: made(784, 100, device), MAF, None),
    "MADE D=512, hidden 512x2, batch 512": (lambda device: made(512, 512, device, WIDE), MAF, None),
    "MADE D=784, hidden 1024x2, batch 512": (lambda device: made(784, 512, device, (1024, 1024)), MAF, None),
    **{
        f"RealNVP D={d}, 8 layers 256x2": (
            partial(couplings, d, 8, NARROW, 0),
            FAST,
            partial(flowjax, "coupling", d, 8, NARROW),
        )
        for d in (2, 21, 43, 63, 784)
    },
    **{
        f"MAF D={d}, 5 layers 512x2": (partial(autoregressive, d, 5, WIDE, 0), MAF, partial(flowjax, "MAF", d, 5, WIDE))
        for d in (2, 21, 43, 63)
    },
    "MAF D=784, 5 layers 1024x1": (
        partial(autoregressive, 784, 5, (1024,), 0, n=100),
        MAF,
        partial(flowjax, "MAF", 784, 5, (1024,), n=100),
    ),
    **{
        f"IAF D={d}, 5 layers 512x2": (
            partial(autoregressive, d, 5, WIDE, 0, inverse=True),
            IAF,
            partial(flowjax, "IAF", d, 5, WIDE),
        )
        for d in (2, 21, 43, 63)
    },
    **{
        f"NSF coupling D={d}, 10 layers 256x2, 8 bins": (
            partial(couplings, d, 10, NARROW, 8),
            FAST,
            partial(flowjax, "coupling", d, 10, NARROW, 8),
        )
        for d in (2, 21, 43, 63)
    },
    **{
        f"NSF autoregressive D={d}, 5 layers 256x2, 8 bins": (
            partial(autoregressive, d, 5, NARROW, 8),
            MAF,
            partial(flowjax, "MAF", d, 5, NARROW, 8),
        )
        for d in (2, 21, 43, 63)
    },
    "Glow vectors D=63, 8 steps 256x2": (glow_vectors, ("train", "log_prob", "sample"), None),
    "Glow image 3x32x32, 2 scales x 4 steps": (glow_image, ("train", "log_prob", "sample"), None),
    "planar D=43, 16 layers": (partial(planars, 43, 16), ("vi",), partial(flowjax, "planar", 43, 16)),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", nargs="*", default=[], help="only cases whose name contains one of these words")
    parser.add_argument("--what", nargs="*", default=list(FAST), choices=FAST)
    parser.add_argument("--jax", action="store_true", help="add flowjax, jitted (it uses every core)")
    parser.add_argument("--compiled", nargs="*", default=["pyrodgm"], help="who is compiled too by --compile")
    parser.add_argument(
        "--sequential", action="store_true", help="what takes the peers D passes forwards and back (minutes a case)"
    )
    parser.add_argument("--only", nargs="*", default=[], help="only these contenders, beside the floor")
    parser.add_argument("--builds", type=int, default=1, help="instances of every contender: they differ by 2 to 5 %%")
    parser.add_argument(
        "--apart", action="store_true", help="each contender in a process of its own, with its own floor"
    )
    options = parser.parse_args()
    print(hardware(options))
    for title, (_, tasks, in_jax) in CASES.items():
        if options.cases and not any(word in title for word in options.cases):
            continue
        asked = FAST if options.sequential and tasks in (MAF, IAF) and "MADE" not in title else tasks
        what = [task for task in asked if task in options.what]
        if options.apart:
            apart(title, what, options)
            continue
        times: dict[str, dict[str, list[float]]] = {task: {} for task in what}
        for seed in range(options.builds):
            contenders, x = built(title, options, seed)
            contenders = [contenders[0], *(c for c in contenders[1:] if not options.only or c.name in options.only)]
            jitted = [in_jax()] if options.jax and in_jax else []
            for task in what:
                calls = {c.name: called(c, task, x) for c in contenders} | {j.name: j.tasks[task] for j in jitted}
                can = {name: call for name, call in calls.items() if call}
                for name, found in interleave(can, *rounds(title, task, options), options.device).items():
                    times[task].setdefault(name, []).extend(found)
        counts = {c.name: sum(p.numel() for p in c.parameters) for c in contenders} | {
            j.name: j.parameters for j in jitted
        }
        notes = {name: f"{count:,} parameters" for name, count in counts.items()}
        for task in what:
            print(table(f"{title}: {task}", times[task], contenders[0].name, notes), flush=True)


def built(title: str, options: argparse.Namespace, seed: int = 0) -> tuple[list[Contender], Tensor]:
    """The contenders of a case, the floor first, and rows to train on."""
    warnings.filterwarnings("ignore", module="nflows|normflows|zuko")
    torch.set_num_threads(options.threads)
    torch.manual_seed(seed)
    contenders, x = CASES[title][0](device=options.device)
    pyro.enable_validation(False)  # after the imports: zuko's changes torch's flag
    torch.distributions.Distribution.set_default_validate_args(False)
    if options.compile:
        contenders += [compiled(c) for c in contenders if c.name in options.compiled]
    return contenders, x


def apart(title: str, what: list[str], options: argparse.Namespace) -> None:
    """Every contender in a process of its own, in turns."""
    contenders, x = built(title, options)
    for task in what:
        can = [c.name for c in contenders[1:] if called(c, task, x)]
        jobs = {f"{name} {seed}": (title, task, name, options, seed) for name in can for seed in range(options.builds)}
        found = in_turns(alone, jobs, *rounds(title, task, options), options.device)
        times, floors = (
            {name: [t for job, ts in one.items() if job.rsplit(" ", 1)[0] == name for t in ts] for name in can}
            for one in found
        )
        print(table(f"{title}: {task}", {k: v for k, v in times.items() if v}, floors), flush=True)


def alone(title: str, task: str, name: str, options: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    """The floor and one contender."""
    contenders, x = built(title, options, seed)
    calls = {c.name: called(c, task, x) for c in contenders if c.name in (contenders[0].name, name)}
    return calls[contenders[0].name], calls[name]


def rounds(title: str, task: str, options: argparse.Namespace) -> tuple[int, int]:
    """How many rounds are timed, and how many before them are not."""
    by_passes = ("train", "log_prob") if "IAF" in title else ("sample", "vi")
    slow = task in by_passes and any(word in title for word in ("MADE", "MAF", "IAF", "NSF autoregressive"))
    return (3, 1) if slow else (options.repeats, options.warmup)


def compiled(contender: Contender) -> Contender:
    """The same under torch.compile; drawing only with its density."""
    draw = None if contender.draw is None else torch.compile(contender.draw)
    return Contender(f"{contender.name}, compiled", contender.parameters, torch.compile(contender.log_prob), None, draw)


def called(contender: Contender, task: str, x: Tensor) -> Callable[[], Any] | None:
    """One task of one contender, or None where it cannot."""
    if task == "train":
        return step(lambda: -contender.log_prob(x).mean(), contender.parameters)
    if task == "log_prob":
        return torch.no_grad()(lambda: contender.log_prob(x))
    if task == "sample":
        return contender.sample and torch.no_grad()(contender.sample)
    return contender.draw and step(partial(reverse_kl, contender.draw), contender.parameters)


if __name__ == "__main__":
    main()
