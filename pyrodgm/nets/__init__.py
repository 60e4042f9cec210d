"""Plain networks that know nothing of probability."""

from pyrodgm.nets.concat_squash import ConcatSquash, ConcatSquashMLP
from pyrodgm.nets.conv import ChannelsLastConv2d, ConvNet
from pyrodgm.nets.grids import Grid, GridNet
from pyrodgm.nets.masked import MaskedMLP
from pyrodgm.nets.mlp import MLP, MLPCritic
from pyrodgm.nets.recurrent import RecurrentNet, TokenEncoder
from pyrodgm.nets.residual import ResidualConvNet, WeightNormConv2d
from pyrodgm.nets.skip import SkipMLP

__all__ = [
    "MLP",
    "ChannelsLastConv2d",
    "ConcatSquash",
    "ConcatSquashMLP",
    "ConvNet",
    "Grid",
    "GridNet",
    "MLPCritic",
    "MaskedMLP",
    "RecurrentNet",
    "ResidualConvNet",
    "SkipMLP",
    "TokenEncoder",
    "WeightNormConv2d",
]
