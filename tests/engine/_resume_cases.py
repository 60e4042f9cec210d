"""Cases of test_fit_resume: models whose next step depends on much state. The script kills and resumes them."""

import os
import signal
import sys
import warnings

import torch
from torch import nn

import pyrodgm
from pyrodgm.energy import RBM, DeepBeliefNetwork, DeepBoltzmannMachine, Recognition
from pyrodgm.implicit import GAN
from pyrodgm.latent import VAE
from pyrodgm.objectives import ELBO, Adversarial, ContrastiveDivergence, MaximumLikelihood, MeanFieldContrastive, UpDown
from pyrodgm.tractable import MADE, RealNVP


def bits():
    return (torch.rand(70, 6, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def reals():
    return torch.randn(70, 2, generator=torch.Generator().manual_seed(1))


class Noisy(torch.utils.data.Dataset):
    """Rows with fresh noise at each reading."""

    def __len__(self):
        return 70

    def __getitem__(self, i):
        return reals()[i] + 0.1 * torch.randn(2)


def dropout_flow():
    flow = RealNVP(features=2)
    for module in [m for m in flow.modules() if isinstance(m, nn.Sequential)]:
        for i, layer in enumerate(module):
            if isinstance(layer, (nn.ReLU, nn.Tanh, nn.SiLU)):
                module[i] = nn.Sequential(layer, nn.Dropout(0.2))
    if not any(isinstance(m, nn.Dropout) for m in flow.modules()):
        raise AssertionError("no layer got dropout")
    return flow


def cosine(optimizer, total):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)


def momentum(parameters):
    return torch.optim.SGD(parameters, 0.01, momentum=0.9)


def gan():
    model = GAN.mlp(2, 2, [8])
    return model, Adversarial.mlp(model, [8])


CASES = {
    "VAE with best state": (lambda: (VAE.mlp(6, 2, [8]), ELBO(particles=2)), bits, {"validate": bits()[:20]}),
    "RBM with chains": (lambda: (RBM(6, 3), ContrastiveDivergence(k=2, persistent=True)), bits, {}),
    "DBM with chains": (lambda: (DeepBoltzmannMachine(6, [4, 3]), MeanFieldContrastive(k=2)), bits, {}),
    "DBN with its recognition": (lambda: (DeepBeliefNetwork(6, [4, 3]), UpDown(Recognition(6, [4]), k=2)), bits, {}),
    "GAN": (gan, reals, {"clip": 1.0, "lr_schedule": cosine, "validate": reals()[:20]}),
    "MADE with masks": (lambda: (MADE(6, [8], masks=3), MaximumLikelihood()), bits, {"lr_schedule": cosine}),
    "flow with dropout": (lambda: (dropout_flow(), MaximumLikelihood()), reals, {"optimizer": momentum}),
    "noisy dataset": (lambda: (RealNVP(features=2), MaximumLikelihood()), Noisy, {}),
    "noisy shuffled loader": (
        lambda: (RealNVP(features=2), MaximumLikelihood()),
        lambda: torch.utils.data.DataLoader(Noisy(), batch_size=16, shuffle=True),
        {},
    ),
}  # fmt: skip


def train(case, folder=None, kill_at=None, steps=13, **more):
    """13 steps of 5 an epoch, so the run ends inside the third; killed before the loss of step ``kill_at``."""
    torch.manual_seed(0)
    make, data, options = CASES[case]
    model, objective = make()
    if kill_at is not None:
        kind, calls = type(objective), []

        class Killed(kind):
            def forward(self, *args, **kwargs):
                calls.append(0)
                if len(calls) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield from super().forward(*args, **kwargs)

        objective.__class__ = Killed
        Killed.__qualname__ = kind.__qualname__
    checkpoint = {} if folder is None else {"checkpoint": folder, "checkpoint_every": 2}
    return pyrodgm.fit(
        model, data(), objective, **{"batch_size": 16, "steps": steps, "progress": False, "device": "cpu"},
        **options, **checkpoint, **more,
    )  # fmt: skip


def state(run):
    return {**run.model.state_dict(), **{f"objective.{k}": v for k, v in run.objective.state_dict().items()}}


def same(a, b):
    x, y = state(a), state(b)
    losses = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.history] for run in (a, b)]
    equal = x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
    return equal and losses[0] == losses[1] and a.best == b.best


if __name__ == "__main__":
    warnings.simplefilter("error")
    folder = sys.argv[1]
    torch.set_num_threads(1)
    kills = {case: 3 + i % 7 for i, case in enumerate(CASES)}  # some in the first epoch, some in the second
    for case, kill_at in kills.items():
        child = os.fork()
        if child == 0:
            train(case, f"{folder}/{case}", kill_at)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, case
    for case in CASES:
        resumed, whole = train(case, f"{folder}/{case}"), train(case)
        print(case, "|", int(resumed.timings["steps"]), "|", same(resumed, whole), flush=True)
