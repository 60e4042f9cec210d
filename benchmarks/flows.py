"""MADE and RealNVP beside the peers: training step, log_prob and sampling as multiples of the bare matrix products.

The floor is the same network without anything but its linear layers: forward, backward (with the
gradients that the flow needs of the layers' inputs) and fused Adam on the same parameters. All
contenders get fused Adam and run without argument validation, as ``pyrodgm.fit`` does after its first step.

To add a case: write a function that returns its contenders, floor first, and put it into CASES.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro.nn import AutoRegressiveNN, DenseNN
from timing import arguments, hardware, interleave, step, table
from torch import Tensor, nn
from torch.nn import functional as F

from pyrodgm.tractable import MADE, RealNVP


@dataclass
class Contender:
    """What is timed of one library; ``log_prob`` and ``sample`` run without gradients."""

    name: str
    parameters: list[nn.Parameter]
    log_prob: Callable[[Tensor], Tensor]  # (B, D) -> (B,)
    sample: Callable[[], Tensor] | None = None


def _floor(nets: Iterable[Sequence[nn.Linear]], batch: int, n: int, device: str) -> Contender:
    """Linear layers in a row, several rows; all inputs but the last row's want gradients, as a chain does."""
    nets = [[nn.Linear(m.in_features, m.out_features, device=device) for m in net] for net in nets]
    inputs = [torch.randn(max(batch, n), net[0].in_features, device=device) for net in nets]
    parameters = [p for net in nets for m in net for p in m.parameters()]
    grads = [torch.randn(batch, net[-1].out_features, device=device) for net in nets]

    class Products(torch.autograd.Function):
        """The network's outputs with given gradients, so that no loss is computed."""

        @staticmethod
        def forward(ctx: Any, *outputs: Tensor) -> Tensor:
            return outputs[0].new_zeros(())

        @staticmethod
        def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
            return tuple(grads)

    def outputs(rows: int = batch) -> list[Tensor]:
        result = []
        for i, (net, h) in enumerate(zip(nets, inputs, strict=True)):
            h = h[:rows].detach().requires_grad_(i < len(nets) - 1)
            for layer in net:
                h = layer(h)
            result.append(h)
        return result

    return Contender("floor", parameters, lambda x: Products.apply(*outputs()), lambda: outputs(n))


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


# RealNVP ------------------------------------------------------------------------------------------------------------


class _Net(nn.Sequential):
    """The same perceptron for every peer that takes a module; a context argument is accepted and ignored."""

    def __init__(self, inputs: int, outputs: int, hidden: Sequence[int]) -> None:
        sizes = [inputs, *hidden, outputs]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


def realnvp_pyrodgm(features: int, layers: int, hidden: Sequence[int], device: str, n: int) -> Contender:
    flow = RealNVP(features, layers, hidden).to(device)
    return Contender("pyrodgm", list(flow.parameters()), flow.log_prob, lambda: flow.sample(n))


def realnvp_pyro(features: int, layers: int, hidden: Sequence[int], device: str, n: int) -> Contender:
    half = features // 2
    parts: list[Any] = []
    for i in range(layers):
        kept = half if i % 2 == 0 else features - half  # the permutation between them swaps the halves
        parts.append(T.AffineCoupling(kept, DenseNN(kept, list(hidden), [features - kept] * 2)).to(device))
        parts.append(T.Permute(torch.roll(torch.arange(features, device=device), -kept)))
    base = dist.Normal(torch.zeros(features, device=device), torch.ones(features, device=device)).to_event(1)
    flow = dist.TransformedDistribution(base, parts)

    def log_prob(x: Tensor) -> Tensor:
        flow.clear_cache()  # its cache would answer for the last step's parameters
        return flow.log_prob(x)

    parameters = [p for part in parts if isinstance(part, nn.Module) for p in part.parameters()]
    return Contender("pyro", parameters, log_prob, lambda: flow.sample((n,)))


def realnvp_nflows(features: int, layers: int, hidden: Sequence[int], device: str, n: int) -> Contender:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import AffineCouplingTransform, CompositeTransform

    def coupling(flip: int) -> nn.Module:
        mask = torch.ones(features)
        mask[: features // 2] = -1  # positive entries are moved
        return AffineCouplingTransform(-mask if flip else mask, lambda a, b: _Net(a, b, hidden))

    flow = Flow(CompositeTransform([coupling(i % 2) for i in range(layers)]), StandardNormal([features])).to(device)
    return Contender("nflows", list(flow.parameters()), flow.log_prob, lambda: flow.sample(n))


def realnvp_zuko(features: int, layers: int, hidden: Sequence[int], device: str, n: int) -> Contender:
    import zuko

    flow = zuko.flows.NICE(features, transforms=layers, hidden_features=tuple(hidden)).to(device)
    return Contender("zuko", list(flow.parameters()), lambda x: flow().log_prob(x), lambda: flow().sample((n,)))


def realnvp_normflows(features: int, layers: int, hidden: Sequence[int], device: str, n: int) -> Contender:
    import normflows as nf

    first = features - features // 2  # its Split gives the larger half to the network
    flows: list[nn.Module] = []
    for _ in range(layers):
        flows.append(nf.flows.AffineCouplingBlock(_Net(first, 2 * (features - first), hidden)))
        flows.append(nf.flows.Permute(features, mode="swap"))
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), flows).to(device)
    return Contender("normflows", list(flow.parameters()), flow.log_prob, lambda: flow.sample(n)[0])


def realnvp(features: int, batch: int, device: str, n: int = 1000) -> tuple[list[Contender], Tensor]:
    layers, hidden = 8, (256, 256)
    makers = (realnvp_pyrodgm, realnvp_pyro, realnvp_nflows, realnvp_zuko, realnvp_normflows)
    contenders = [make(features, layers, hidden, device, n) for make in makers]
    nets = [_linears(c.net) for c in RealNVP(features, layers, hidden).bijectors]
    return [_floor(nets, batch, n, device), *contenders], torch.randn(batch, features, device=device)


# MADE with Bernoulli conditionals -------------------------------------------------------------------------------------


def _bernoulli(name: str, net: nn.Module, logits: Callable[[Tensor], Tensor], features: int, n: int) -> Contender:
    """A peer's masked net with the cross-entropy; its sampler is the one such nets allow, D full passes."""
    device = next(net.parameters()).device

    def log_prob(x: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(logits(x), x, reduction="none").sum(-1)

    def sample() -> Tensor:
        x = torch.zeros(n, features, device=device)
        for d in range(features):
            x[:, d] = torch.bernoulli(logits(x)[:, d].sigmoid())
        return x

    return Contender(name, list(net.parameters()), log_prob, sample)


def made_pyrodgm(features: int, hidden: int, device: str, n: int) -> Contender:
    model = MADE(features, [hidden]).to(device)
    return Contender("pyrodgm", list(model.parameters()), model.log_prob, lambda: model.sample(n))


def made_pyro(features: int, hidden: int, device: str, n: int) -> Contender:  # it refuses hidden < features
    net = AutoRegressiveNN(features, [hidden], param_dims=[1], permutation=torch.arange(features)).to(device)
    return _bernoulli("pyro", net, net, features, n)


def made_nflows(features: int, hidden: int, device: str, n: int) -> Contender:
    from nflows.transforms import made as peer

    net = peer.MADE(features, hidden, num_blocks=0, use_residual_blocks=False)  # its first layer ends in the activation
    return _bernoulli("nflows", net.to(device), net, features, n)


def made_normflows(features: int, hidden: int, device: str, n: int) -> Contender:
    from normflows.nets import made as peer

    net = peer.MADE(features, hidden, num_blocks=0, use_residual_blocks=False).to(device)
    # Without blocks its forward has no activation at all, which would be another network: put one between its layers.
    return _bernoulli("normflows", net, lambda x: net.final_layer(F.relu(net.initial_layer(x))), features, n)


def made_zuko(features: int, hidden: int, device: str, n: int) -> Contender:
    import zuko

    net = zuko.nn.MaskedMLP(torch.ones(features, features).tril(-1).bool(), hidden_features=(hidden,)).to(device)
    return _bernoulli("zuko", net, net, features, n)


def made(features: int, batch: int, device: str, n: int = 100) -> tuple[list[Contender], Tensor]:
    hidden = 500
    makers = (made_pyrodgm, made_pyro, made_nflows, made_zuko, made_normflows)
    contenders = [make(features, hidden, device, n) for make in makers if make is not made_pyro or hidden >= features]
    floor = _floor([_linears(MADE(features, [hidden]))], batch, n, device)
    return [floor, *contenders], torch.rand(batch, features, device=device).round()


CASES: dict[str, Callable[[str], tuple[list[Contender], Tensor]]] = {
    "MADE D=123, hidden 500, batch 100": lambda device: made(123, 100, device),
    "MADE D=784, hidden 500, batch 100": lambda device: made(784, 100, device),
    "RealNVP D=43, 8 layers 256x2, batch 512": lambda device: realnvp(43, 512, device),
    "RealNVP D=63, 8 layers 256x2, batch 512": lambda device: realnvp(63, 512, device),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--cases", nargs="*", default=[], help="only cases whose name contains one of these words")
    parser.add_argument("--what", nargs="*", default=["train", "log_prob", "sample"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="nflows|normflows|zuko")
    print(hardware(options))
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)
    for title, build in CASES.items():
        if options.cases and not any(word in title for word in options.cases):
            continue
        torch.manual_seed(0)
        contenders, x = build(options.device)
        if options.compile:
            ours = next(c for c in contenders if c.name == "pyrodgm")
            contenders.append(Contender("pyrodgm, compiled", ours.parameters, torch.compile(ours.log_prob)))
        report(title, contenders, x, options)


def report(title: str, contenders: list[Contender], x: Tensor, options: Any) -> None:
    """The tables of one case."""
    counts = {c.name: f"{sum(p.numel() for p in c.parameters):,} parameters" for c in contenders}
    tasks: dict[str, dict[str, Callable[[], Any]]] = {
        "train": {c.name: step(lambda c=c: -c.log_prob(x).mean(), c.parameters) for c in contenders},
        "log_prob": {c.name: torch.no_grad()(lambda c=c: c.log_prob(x)) for c in contenders},
        "sample": {c.name: torch.no_grad()(c.sample) for c in contenders if c.sample},
    }
    for what in options.what:
        slow = what == "sample" and "MADE" in title  # D full passes of every peer
        repeats, warmup = (max(3, options.repeats // 20), 1) if slow else (options.repeats, options.warmup)
        times = interleave(tasks[what], repeats, warmup, options.device)
        print(table(f"{title}: {what}", times, "floor", counts), flush=True)


if __name__ == "__main__":
    main()
