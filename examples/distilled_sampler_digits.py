"""Distillation: a MAF on 8x8 digits, which draws pixel by pixel, teaches an IAF, which draws all pixels in one pass."""

import argparse
import statistics
import time

import torch

import pyrodgm
from pyrodgm.data import dequantize, inverse_logit, load, logit
from pyrodgm.diagnostics import latent_grid
from pyrodgm.evaluation import log_likelihood
from pyrodgm.objectives import Distillation
from pyrodgm.tractable import IAF, MAF

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--smoke", action="store_true", help="a few steps only")
parser.add_argument("--picture", default="distilled_sampler_digits.png")
arguments = parser.parse_args()
torch.manual_seed(0)

# Data: logits of dequantized grey levels 0..16.
LEVELS, EDGE = 17, 0.05
digits = load("digits")
train, valid, test = (
    logit(dequantize((16 * digits.part(name)).round(), LEVELS)[0], EDGE)[0] for name in ("train", "valid", "test")
)

# The teacher learns from data: scoring is its fast way.
teacher = MAF(features=64, layers=5, hidden=[128, 128])
pyrodgm.fit(
    teacher,
    train,
    validate=valid,
    epochs=1 if arguments.smoke else 100,
    early_stopping=10,
    lr=1e-3,
    progress=not arguments.smoke,
)

# The student learns from the teacher alone, at draws of its own: sampling is its fast way.
student = IAF(features=64, layers=5, hidden=[128, 128])
pyrodgm.fit(
    student,
    None,
    Distillation(teacher),
    batch_size=256,
    steps=2 if arguments.smoke else 4000,
    lr=1e-3,
    lr_schedule=lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    clip=10.0,
    progress=not arguments.smoke,
)
teacher, student = teacher.cpu().eval(), student.cpu().eval()

# What is left of the divergence, at new draws, and how each scores the test digits.
with torch.no_grad():
    x = student.sample(2000)
    ratio = (student.log_prob(x) - teacher.log_prob(x)).double()
print(f"KL(student || teacher): {ratio.mean():.3f} +- {ratio.std() / len(ratio) ** 0.5:.3f} nats over 64 pixels")
for name, model in (("teacher", teacher), ("student", student)):
    value, error, kind = log_likelihood(model, test)
    print(f"{name}, test: {value:.2f} +- {error:.2f} nats ({kind})")


def milliseconds(model, rows):
    model.sample(rows)
    times = []
    for _ in range(2 if arguments.smoke else 20):
        start = time.perf_counter()
        model.sample(rows)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


for rows in (1, 100, 1000):
    slow, fast = milliseconds(teacher, rows), milliseconds(student, rows)
    print(f"{rows} draws: teacher {slow:.1f} ms, student {fast:.2f} ms, {slow / fast:.1f} times faster")

# Digits of both.
drawn = [inverse_logit(model.sample(36), EDGE)[0].clamp(0, 1).reshape(3, 12, 64) for model in (teacher, student)]
picture = latent_grid(torch.cat(drawn), (8, 8), "above: the teacher's; below: the student's")
picture.savefig(arguments.picture, dpi=150)
