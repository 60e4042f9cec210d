"""Maps by reflections beside the reflections themselves, one after the other."""

import pytest
import torch
from cases import C, contexts, grow

from pyrodgm.bijectors import Householder, QRLinear


def reflected(x, vectors):
    for v in vectors:
        x = x - 2 * v * (v @ x) / (v @ v)
    return x


@pytest.mark.parametrize("reflections", [1, 3, 5, 9])
def test_householder_is_its_reflections(reflections):
    torch.manual_seed(0)
    layer, x = Householder(5, reflections=reflections).double(), torch.randn(4, 5).double()
    expected = torch.stack([reflected(row, layer.vectors) for row in x])
    torch.testing.assert_close(layer(x)[0], expected)


def test_aligned_reflections_cancel():
    layer = Householder(4, reflections=2).double()
    with torch.no_grad():
        layer.vectors[1] = -3 * layer.vectors[0]
    x = torch.randn(6, 4).double()
    torch.testing.assert_close(layer(x)[0], x)


def test_a_matrix_has_these_factors():
    """Its Jacobian's own QR factors, which are unique up to the signs of R's diagonal."""
    torch.manual_seed(0)
    layer = grow(QRLinear(5)).double()
    matrix = torch.autograd.functional.jacobian(lambda x: layer(x)[0], torch.zeros(5).double())
    upper = torch.linalg.qr(matrix)[1]
    found = layer.upper.triu(1) + layer.log_diagonal.exp().diag()
    torch.testing.assert_close(upper.diagonal().sign().diag() @ upper, found)


def test_each_context_has_its_own_matrix():
    torch.manual_seed(0)
    layer, context = grow(QRLinear(3, context=C)).double(), contexts(5)
    x = torch.randn(5, 3).double()
    y, ladj = layer(x, context)
    for i in range(5):
        alone = layer.condition(context[i])
        matrix = torch.autograd.functional.jacobian(lambda z, t=alone: t(z), x[i])
        torch.testing.assert_close(ladj[i], torch.linalg.slogdet(matrix)[1])
        torch.testing.assert_close(y[i], alone(x[i]))


@pytest.mark.parametrize("make", [Householder, QRLinear])
def test_sizes_below_one_are_refused(make):
    with pytest.raises(ValueError, match="expected positive sizes, got features=3, reflections=0"):
        make(3, reflections=0)
