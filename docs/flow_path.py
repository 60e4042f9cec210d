"""Draws docs/flow_path.png: a spline flow on a pinwheel, layer by layer."""

from pathlib import Path

import torch

import pyrodgm
from pyrodgm.data import load
from pyrodgm.diagnostics import path_2d, save
from pyrodgm.tractable import NSF

torch.manual_seed(0)
data = load("pinwheel")
flow = NSF(2, layers=4, hidden=[64, 64], bound=4.0)
pyrodgm.fit(flow, data.train, validate=data.valid, epochs=40, batch_size=256)
save(path_2d(flow, n=4000), Path(__file__).parent / "flow_path.png")
