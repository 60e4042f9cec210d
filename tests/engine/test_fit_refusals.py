"""What fit refuses before any work is lost, and what it gives back beside the best state."""

import pytest
import torch
from torch import nn

import pyrodgm
from pyrodgm.energy import RBM, BoltzmannMachine, DeepBeliefNetwork, DeepBoltzmannMachine, NeuralEnergy
from pyrodgm.energy.twins import TwinRBM
from pyrodgm.engine.batches import as_batches
from pyrodgm.guides import ImplicitGuide, Sites
from pyrodgm.latent import VAE
from pyrodgm.objectives import Objective
from pyrodgm.tractable import StandardNormal


class Drift(Objective):
    """The mean of a normal, and beside it a number that is to be the step at which it was scored."""

    def __init__(self):
        super().__init__()
        self.log_z = nn.Parameter(torch.zeros(()))
        self.scores = iter([3.0, 1.0, 2.0, 4.0])

    def check(self, model):
        pass

    def players(self, model):
        return {"model": [self.log_z]}

    def loss(self, model, x, context=None, *, n=None):
        return -self.log_z

    def held_out(self, model, x, context=None, *, n=None):
        return torch.tensor(next(self.scores))


def test_what_the_objective_has_learned_is_that_of_the_best_state(tmp_path):
    objective = Drift()
    x = torch.zeros(8, 2)
    options = {"batch_size": 8, "progress": False, "optimizer": lambda ps: torch.optim.SGD(ps, lr=1.0)}
    run = pyrodgm.fit(StandardNormal(2), x, objective, validate=x, epochs=3, checkpoint=tmp_path, **options)
    assert run.best["epoch"] == 2
    assert objective.log_z.item() == 2.0
    again = Drift()
    again.scores = iter([4.0])
    pyrodgm.fit(StandardNormal(2), x, again, validate=x, epochs=4, checkpoint=tmp_path, **options)
    assert again.log_z.item() == 2.0, "the resumed run remembers it"


def test_rows_are_not_scored_by_a_program_whose_log_z_moves():
    vae = VAE.mlp(features=4, latent=2, hidden=[8])
    vae.prior = NeuralEnergy.mlp(2, hidden=[8])
    x = torch.ones(16, 4)
    with pytest.raises(ValueError, match="'z', whose log Z moves as it trains; fit without validate="):
        pyrodgm.fit(vae, x, validate=x, epochs=1, progress=False)
    assert pyrodgm.fit(vae, x, epochs=1, progress=False).stopped == "finished"


@pytest.mark.parametrize(
    "model",
    [
        RBM(4, 3),
        TwinRBM(4, 3),
        BoltzmannMachine(4),
        DeepBoltzmannMachine(4, [3, 2]),
        DeepBeliefNetwork(4, [3, 2]),
        VAE(RBM(4, 3), VAE.mlp(features=4, latent=4).likelihood, VAE.mlp(features=4, latent=4).guide),
    ],
    ids=lambda model: type(model).__name__,
)
def test_units_are_not_drawn_by_rounded_probabilities(model):
    with pytest.raises(ValueError, match=r'expected precision="32-true" or "64-true" for [A-Z]'):
        pyrodgm.fit(model, torch.ones(8, 4), epochs=1, precision="bf16-mixed", progress=False)


def test_one_device_by_number_is_one_device():
    with pytest.raises(ValueError, match=r"expected devices=1 with device='cuda:1', got 2"):
        pyrodgm.fit(StandardNormal(2), torch.zeros(8, 2), device="cuda:1", devices=2, progress=False)


def test_a_loader_has_batches_of_its_own():
    model, x = StandardNormal(2), torch.zeros(10, 2)
    loader = torch.utils.data.DataLoader(x, batch_size=5)
    shares = [as_batches(model, loader, None, 128, torch.device("cpu"), rank=rank, world=3) for rank in range(3)]
    assert [sum(len(b) for b, _ in share.epoch(0, 0)) for share in shares] == [2, 2, 2]  # equal parts of 5 and 5
    with pytest.raises(ValueError, match="multiple of the 3 devices, got 128"):
        as_batches(model, x, None, 128, torch.device("cpu"), world=3)


def test_the_dtype_is_that_of_the_model_as_it_stands():
    vae, x = VAE.mlp(features=4, latent=2, hidden=[8]), torch.ones(3, 4)
    vae(x)
    vae.guide = ImplicitGuide(Sites(vae, (x,)))
    vae.double()
    assert vae.dtype == torch.float64
    assert vae(x.double()).dtype == torch.float64
