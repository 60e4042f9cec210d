"""Draws docs/members.png, the README's picture: one member of each family on the built-in data."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

import pyrodgm
from pyrodgm.data import load
from pyrodgm.energy import RBM
from pyrodgm.implicit import GAN
from pyrodgm.latent import VAE
from pyrodgm.objectives import Adversarial
from pyrodgm.tractable import MADE, RealNVP

torch.manual_seed(0)
digits, pinwheel = load("digits_binary"), load("pinwheel")
models = {
    "MADE (tractable)": (MADE(64, [300]), {"epochs": 60, "lr": 2e-3}),
    "VAE (latent)": (VAE(RealNVP(6, 4), MADE(64, [200], context=6), RealNVP(6, 4, context=64)), {"epochs": 80}),
    "RBM (energy)": (RBM(64, 150), {"epochs": 60}),
}
for model, options in models.values():
    pyrodgm.fit(model, digits.train, validate=digits.valid, batch_size=64, **options)
    model.cpu()  # it stays where it was trained, the data do not
gan = GAN.mlp(64, 32, [128], output=torch.nn.Sigmoid())
pyrodgm.fit(gan, digits.train, Adversarial.mlp(gan, hidden=[128]), validate=digits.valid, epochs=200)
gan.cpu()
models["GAN (implicit)"] = gan, {}
flow = RealNVP(2, layers=10, hidden=[128, 128])
pyrodgm.fit(flow, pinwheel.train, validate=pinwheel.valid, epochs=40, batch_size=256)
flow.cpu()

figure = Figure(figsize=(11, 2.6), layout="constrained")
panels = figure.subplots(1, 6)
pictures = {"real digits": digits.test[:36], **{name: model.sample(36) for name, (model, _) in models.items()}}
for axes, (name, x) in zip(panels, pictures.items(), strict=False):
    tiles = torch.nn.functional.pad(x.reshape(6, 6, 8, 8), (1, 1, 1, 1), value=0.25)
    axes.imshow(tiles.permute(0, 2, 1, 3).reshape(60, 60), cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(name, fontsize=10)
    axes.set_axis_off()
side = torch.linspace(-4, 4, 200)
density = flow.log_prob(torch.cartesian_prod(side, side)).exp().detach().reshape(200, 200).T
panels[-1].imshow(density, origin="lower", cmap="Blues")
panels[-1].set_title("RealNVP (tractable)", fontsize=10)
panels[-1].set_axis_off()
figure.savefig(Path(__file__).parent / "members.png", dpi=110)
