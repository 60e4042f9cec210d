"""Glow over images and over vectors beside nflows and normflows: training step, log_prob and sampling.

The floor is the coupling networks alone (their layers, forward and backward and fused Adam, without activations).
Contenders have coupling networks of the same shapes: 3x3, 1x1, 3x3 convolutions over images, perceptrons over vectors.
Levels of images split half of the channels off in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from contenders import Contender, Net, floor, linears
from torch import Tensor, nn

from pyrodgm.nets import ConvNet
from pyrodgm.tractable import Glow

__all__ = ["glow_image", "glow_vectors"]

_STEPS, _SCALES, _CHANNELS = 4, 2, (64, 64)
Shape = tuple[int, int, int]


def _conv(inputs: int, outputs: int, hidden: Sequence[int]) -> nn.Module:
    """The coupling network of every peer that takes a module."""
    a, b = hidden
    return nn.Sequential(
        nn.Conv2d(inputs, a, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(a, b, 1), nn.ReLU(inplace=True),
        nn.Conv2d(b, outputs, 3, padding=1),
    )  # fmt: skip


def _conv_floor(model: nn.Module, x: Tensor, n: int) -> Contender:
    """The floor of the coupling networks, at the sizes of the images that they see."""
    seen: list[tuple[nn.Module, torch.Size]] = []
    nets = [m for m in model.modules() if isinstance(m, ConvNet)]
    hooks = [m.register_forward_pre_hook(lambda m, args: seen.append((m, args[0].shape[1:]))) for m in nets]
    with torch.no_grad():
        model.log_prob(x)
    for hook in hooks:
        hook.remove()
    rows = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net, _ in seen]
    return floor(rows, len(x), n, str(x.device), [size for _, size in seen])


def image_pyrodgm(shape: Shape, n: int) -> tuple[Contender, Glow]:
    model = Glow(shape, _STEPS, scales=_SCALES, hidden=_CHANNELS, alpha=None, split_prior=False)
    return Contender("pyrodgm", list(model.parameters()), model.log_prob, lambda: model.sample(n)), model


def image_nflows(shape: Shape, n: int) -> Contender:
    from nflows import transforms as T
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    multi = T.MultiscaleCompositeTransform(_SCALES)
    channels, height, width = shape
    for _ in range(_SCALES):
        channels, height, width = channels * 4, height // 2, width // 2
        parts: list[nn.Module] = [T.SqueezeTransform()]
        for _ in range(_STEPS):
            mask = torch.ones(channels)
            mask[: channels // 2] = -1
            coupling = T.AffineCouplingTransform(mask, lambda a, b: _Ignoring(_conv(a, b, _CHANNELS)))
            parts += [T.ActNorm(channels), T.OneByOneConvolution(channels), coupling]
        rest = multi.add_transform(T.CompositeTransform(parts), (channels, height, width))
        if rest is not None:
            channels = rest[0]
    flow = Flow(multi, StandardNormal([shape[0] * shape[1] * shape[2]]))
    return Contender("nflows", list(flow.parameters()), flow.log_prob, lambda: flow.sample(n))


class _Ignoring(nn.Module):
    """A network that takes the context argument of nflows and ignores it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x)


def image_normflows(shape: Shape, n: int) -> Contender:
    import normflows as nf

    channels, height, width = shape
    bases, merges, flows = [], [], []
    for level in range(_SCALES):  # its own order: the coarsest level first
        factor = 2 ** (_SCALES - level)
        here = channels * 2 ** (_SCALES + 1 - level)
        blocks = [nf.flows.GlowBlock(here, _CHANNELS[0], scale_map="exp") for _ in range(_STEPS)]
        flows.append([*blocks, nf.flows.Squeeze()])
        if level > 0:
            merges.append(nf.flows.Merge())
        latent = (here if level == 0 else here // 2, height // factor, width // factor)
        bases.append(nf.distributions.DiagGaussian(latent, trainable=False))
    flow = nf.MultiscaleFlow(bases, flows, merges)
    return Contender("normflows", list(flow.parameters()), lambda x: flow.log_prob(x, None), lambda: flow.sample(n)[0])


def glow_image(batch: int = 64, n: int = 64, device: str = "cpu") -> tuple[list[Contender], Tensor]:
    shape = (3, 32, 32)
    x = torch.randn(batch, *shape, device=device)
    ours, model = image_pyrodgm(shape, n)
    model.to(device)
    return [_conv_floor(model, x, n), ours, image_nflows(shape, n), image_normflows(shape, n)], x


def vector_pyrodgm(features: int, steps: int, hidden: Sequence[int], n: int) -> Contender:
    model = Glow(features, steps, scales=1, hidden=hidden)
    return Contender("pyrodgm", list(model.parameters()), model.log_prob, lambda: model.sample(n))


def vector_nflows(features: int, steps: int, hidden: Sequence[int], n: int) -> Contender:
    from nflows import transforms as T
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    mask = torch.ones(features)
    mask[: features // 2] = -1
    parts: list[nn.Module] = []
    for _ in range(steps):
        parts += [T.ActNorm(features), T.LULinear(features, identity_init=True)]
        parts.append(T.AffineCouplingTransform(mask, lambda a, b: Net(a, b, hidden)))
    flow = Flow(T.CompositeTransform(parts), StandardNormal([features]))
    return Contender("nflows", list(flow.parameters()), flow.log_prob, lambda: flow.sample(n))


def vector_normflows(features: int, steps: int, hidden: Sequence[int], n: int) -> Contender:
    import normflows as nf

    first = features - features // 2
    flows: list[nn.Module] = []
    for _ in range(steps):
        flows.append(nf.flows.AffineCouplingBlock(Net(first, 2 * (features - first), hidden)))
        flows += [nf.flows.LULinearPermute(features), nf.flows.ActNorm(features)]
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(features, trainable=False), flows)
    return Contender("normflows", list(flow.parameters()), flow.log_prob, lambda: flow.sample(n)[0])


def glow_vectors(batch: int = 512, n: int = 1000, device: str = "cpu") -> tuple[list[Contender], Tensor]:
    features, steps, hidden = 63, 8, (256, 256)
    makers = (vector_pyrodgm, vector_nflows, vector_normflows)
    contenders = [make(features, steps, hidden, n) for make in makers]
    model = Glow(features, steps, scales=1, hidden=hidden)
    nets = [linears(m.net) for m in model.modules() if getattr(m, "net", None) is not None]
    return [floor(nets, batch, n, device), *contenders], torch.randn(batch, features, device=device)
