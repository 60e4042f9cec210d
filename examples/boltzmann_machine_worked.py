"""A Boltzmann machine of three units of -1 or 1, solved by enumeration, by Gibbs sampling and by AIS."""

import argparse

import torch

from pyrodgm.energy import BoltzmannMachine

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="fewer chains")
arguments = parser.parse_args()
torch.manual_seed(0)
chains = 2_000 if arguments.smoke else 50_000

# p(x) = exp(-E(x)) / Z with E = -(-x1 x2 - x1 x3 + 2 x2 x3) - x2: a positive weight makes two units agree.
machine = BoltzmannMachine(visible=3, spins=True).double()
weight = torch.tensor([[0.0, -1, -1], [-1, 0, 2], [-1, 2, 0]]).double()
machine.set_weights(weight, bias=torch.tensor([0.0, 1, 0]).double())

nothing, second = torch.tensor([[False] * 3, [False, True, False]])
off = -torch.ones(3).double()
z = machine.log_partition("exact")[0].exp()
one, given = machine.marginals(off, nothing)[0], machine.marginals(off, second)[0]

machine.sample_steps = 400  # slow mixing: the sweep's second eigenvalue is 0.968
x = machine.sample(chains)
completed = machine.complete(off.expand(chains, -1), second)

low, error = machine.log_partition("ais", chains=chains, temperatures=100, seed=0)
high, _ = machine.log_partition("reverse", samples=x, temperatures=100, seed=0)

print("                        Z   p(x1 = 1)   p(x1 = 1 | x2 = -1)")
print("by hand           172.420       0.135                 0.980")
print(f"enumeration       {z:.3f}       {one:.3f}                 {given:.3f}")
print(f"Gibbs                           {(x[:, 0] == 1).double().mean():.3f}", end="")
print(f"                 {(x[x[:, 1] == -1][:, 0] == 1).double().mean():.3f}")
print(f"completion                                            {(completed[:, 0] == 1).double().mean():.3f}")
print(f"AIS               {low.exp():.3f} ± {low.exp() * error:.3f}; reverse AIS {high.exp():.3f}")
