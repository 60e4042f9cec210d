"""Sentences of a small grammar: a recurrent language model and a sentence VAE, beside the grammar's own entropy."""

import argparse
import itertools
import math
import random

import pyro.distributions as dist
import torch

import pyrodgm
from pyrodgm.data import Vocabulary
from pyrodgm.evaluation import latent_use, log_likelihood
from pyrodgm.latent import VAE
from pyrodgm.nets import TokenEncoder
from pyrodgm.objectives import ELBO, FreeBits
from pyrodgm.tractable import Parametric, Recurrent, StandardNormal

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
arguments = parser.parse_args()

# The grammar: (adjective) noun verb, and where the verb wants one, a second noun. No two ways lead to one sentence.
things = {
    f"{the} {adjective}{noun}": p * q * r
    for (the, p), (adjective, q), (noun, r) in itertools.product(
        {"the": 0.6, "a": 0.4}.items(),
        {"": 0.7, "big ": 0.2, "small ": 0.1}.items(),
        {"cat": 0.4, "dog": 0.3, "bird": 0.2, "fish": 0.1}.items(),
    )
}
grammar = {f"{thing} {verb}": p * q for thing, p in things.items() for verb, q in (("sleeps", 0.2), ("runs", 0.2))}
grammar |= {
    f"{thing} {verb} {other}": p * q * r
    for (thing, p), (other, r) in itertools.product(things.items(), repeat=2)
    for verb, q in (("sees", 0.4), ("hears", 0.2))
}
entropy = -sum(p * math.log(p) for p in grammar.values())

# Data: sentences drawn from it, as rows of word numbers.
draw = random.Random(0)
sentences = draw.choices(list(grammar), list(grammar.values()), k=600 if arguments.smoke else 10_000)
words = Vocabulary.of(sentences)
T, V = 8, len(words)
x = words.encode(sentences, length=T)
train, valid, test = x.split([len(x) * 8 // 10, len(x) // 10, len(x) // 10])
reference = sum(math.log(grammar[line]) for line in words.decode(test)) / len(test)
print(f"{len(grammar)} sentences of {V - 2} words, entropy {entropy:.3f} nats")

# A language model, and a VAE whose decoder is one. Its KL is kept from falling to 0 by free bits, and half of the words
# are withheld from the decoder in training, so that it asks the latent.
torch.manual_seed(0)
Z = 4
language = Recurrent(length=T, vocabulary=V, hidden=[64], embedding=16)
vae = VAE(
    prior=StandardNormal(Z),
    likelihood=Recurrent(length=T, vocabulary=V, hidden=[64], embedding=16, context=Z, word_dropout=0.5),
    guide=Parametric(
        dist.Normal, Z, context=T, net=TokenEncoder(vocabulary=V, length=T, outputs=2 * Z, hidden=[64], embedding=16)
    ),
)
for name, model, objective in (
    ("language model", language, None),
    ("sentence VAE", vae, ELBO(free_bits=FreeBits(0.25))),
):
    pyrodgm.fit(
        model,
        train,
        objective,
        validate=valid,
        epochs=1 if arguments.smoke else 20,
        lr=3e-3,
        device="cpu",
        progress=not arguments.smoke,
    )
    value, error, kind = log_likelihood(model, test, particles=20 if arguments.smoke else 200)
    made = words.decode(model.sample(1000))
    share = sum(line in grammar for line in made) / len(made)
    print(f"{name}, test: {value:.3f} +- {error:.3f} nats ({kind}); the grammar itself {reference:.3f}")
    print(f"  {share:.1%} of its samples are sentences of the grammar, such as: {made[0]!r}")
use = latent_use(vae, test)
print(f"latents: {use.active} of {use.units} active, {use.information:.2f} nats about the sentence, KL {use.kl:.2f}")
for line, again in zip(words.decode(test[:3]), words.decode(vae.reconstruct(test[:3])), strict=True):
    print(f"  {line!r} comes back as {again!r}")
