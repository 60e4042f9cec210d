"""What fit refuses before any work is lost, and what it gives back beside the best state."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrodgm
from pyrodgm.core import Latent, data_plate
from pyrodgm.energy import RBM, BoltzmannMachine, DeepBeliefNetwork, DeepBoltzmannMachine, NeuralEnergy
from pyrodgm.energy.twins import TwinRBM
from pyrodgm.engine.batches import as_batches
from pyrodgm.engine.fabric import make_fabric
from pyrodgm.engine.fit import _check_scores
from pyrodgm.guides import ImplicitGuide, Sites
from pyrodgm.latent import VAE
from pyrodgm.objectives import Objective
from pyrodgm.tractable import RealNVP, StandardNormal


class Drift(Objective):
    """The mean of a normal, and beside it a number that is to be the step at which it was scored."""

    def __init__(self):
        super().__init__()
        self.log_z = nn.Parameter(torch.zeros(()))
        self.critic = nn.Linear(1, 1)
        self.critic.register_buffer("seen", torch.zeros(()))
        self.register_buffer("chain", torch.zeros(()))
        self.scores = iter([3.0, 1.0, 2.0, 4.0])

    def check(self, model):
        pass

    def players(self, model):
        return {"model": [self.log_z]}

    def loss(self, model, x, context=None, *, n=None):
        self.critic.seen.add_(1)
        self.chain.add_(1)
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
    assert objective.critic.seen.item() == 2.0
    assert objective.chain.item() == 3.0, "chains go on"
    again = Drift()
    again.scores = iter([4.0])
    pyrodgm.fit(StandardNormal(2), x, again, validate=x, epochs=4, checkpoint=tmp_path, **options)
    assert again.log_z.item() == 2.0, "the resumed run remembers it"
    assert again.critic.seen.item() == 2.0
    assert again.chain.item() == 4.0


def test_rows_are_not_scored_by_a_program_whose_log_z_moves():
    vae = VAE.mlp(features=4, latent=2, hidden=[8])
    vae.prior = NeuralEnergy.mlp(2, hidden=[8])
    x = torch.ones(16, 4)
    with pytest.raises(ValueError, match="'z', whose log Z moves as it trains; fit without validate="):
        pyrodgm.fit(vae, x, validate=x, epochs=1, progress=False)
    assert pyrodgm.fit(vae, x, epochs=1, progress=False).stopped == "finished"
    vae.prior.requires_grad_(False)  # its log Z is a constant, by which all scores are off alike
    assert pyrodgm.fit(vae, x, validate=x, epochs=1, progress=False).best is not None


class Flat(Latent):
    """z ~ N(0, I), x ~ N(z, I), by a product that takes one batch dimension and no particles' one."""

    def __init__(self):
        super().__init__((2,))
        self.guide = VAE.mlp(features=2, latent=2, hidden=[4]).guide
        self.weight = nn.Parameter(torch.eye(2))

    def forward(self, x=None, context=None, *, n=None):
        x, context = self.check(x, context)
        with data_plate(x, context, n):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(torch.mm(z, self.weight), 1.0).to_event(1), obs=x)


def test_held_out_rows_want_no_program_that_broadcasts():
    run = pyrodgm.fit(Flat(), torch.randn(16, 2), validate=torch.randn(4, 2), epochs=1, progress=False)
    assert run.best is not None


def test_a_process_may_have_no_held_out_row():
    model, x = VAE.mlp(features=4, latent=2, hidden=[8]), torch.ones(1, 4)
    cpu = torch.device("cpu")
    _check_scores(model, as_batches(model, x, None, 4, cpu, rank=1, world=2, even=False), 0, cpu)


def test_held_out_rows_of_a_conditional_model_are_pairs():
    model, x, context = RealNVP(2, context=3), torch.randn(8, 2), torch.randn(8, 3)
    with pytest.raises(ValueError, match=r"give validate as a pair \(x, context\)"):
        pyrodgm.fit(model, (x, context), validate=x, progress=False)


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


@pytest.mark.parametrize("precision", [16, "16", "bf16", "16-mixed", "bf16-true", "16-true", "transformer-engine"])
def test_no_name_of_a_precision_gets_around_that(precision):
    with pytest.raises(ValueError, match='expected precision="32-true"'):
        pyrodgm.fit(RBM(4, 3), torch.ones(8, 4), epochs=1, precision=precision, progress=False)


@pytest.mark.parametrize("precision", [None, 32, "32", "64"])
def test_whole_numbers_have_several_names(precision):
    run = pyrodgm.fit(RBM(4, 3), torch.ones(8, 4), epochs=1, precision=precision, progress=False)
    assert run.stopped == "finished"


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_log_densities_are_not_rounded(precision):
    with pytest.raises(ValueError, match=r'"bf16-mixed", got .*16-true., which would round the log-densities'):
        pyrodgm.fit(StandardNormal(2), torch.zeros(8, 2), precision=precision, progress=False)


@pytest.mark.parametrize(
    ("strategy", "start"), [("auto", "popen"), ("ddp", "popen"), ("ddp_spawn", "spawn"), ("ddp_fork", "fork")]
)
def test_several_devices_have_buffers_of_their_own_and_players_in_turn(strategy, start):
    """Lightning's own choice would stop at a player that is left out, and copy rank 0's chains to all ranks."""
    made = make_fabric("cpu", "32-true", strategy, 2).strategy
    assert made._start_method == start
    assert made._ddp_kwargs["find_unused_parameters"]
    assert False in (made._ddp_kwargs.get("forward_sync_buffers"), made._ddp_kwargs.get("broadcast_buffers"))


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
