"""Rows that deep machines have something to learn from."""

import torch
from torch import Tensor


def patterns(n: int) -> Tensor:
    """Two patterns of eight units and their overlays, with a twentieth of the units flipped, (n, 8)."""
    torch.manual_seed(5)
    parts = torch.tensor([[1.0, 1, 1, 0, 0, 0, 1, 0], [0.0, 0, 0, 1, 1, 1, 0, 1]])
    x = (torch.randint(2, (n, 2)).float() @ parts).clamp(max=1)
    return torch.where(torch.rand_like(x) < 0.05, 1 - x, x).double()
