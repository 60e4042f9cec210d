"""Built-in data: shapes, splits that follow from the seed, names."""

from __future__ import annotations

import re

import pytest
import torch

from pyrodgm.data import data_sets, load, split_rows


@pytest.mark.parametrize("name", data_sets())
def test_every_set_keeps_what_it_says(name: str) -> None:
    data = load(name)
    assert data.name == name
    assert data.description == data_sets()[name]
    assert "\n" not in data.description
    for part in ("train", "valid", "test"):
        x = data.part(part)
        assert x.dtype == torch.float32
        assert x.isfinite().all()
        assert tuple(x.shape[1:]) == data.event_shape
        assert bool(((x == 0) | (x == 1)).all()) == data.binary
        assert data.labels is not None
        assert len(data.labels[part]) == len(x)
        assert data.context(part).sum(-1).eq(1).all()
    again, other = load(name), load(name, seed=1)
    assert torch.equal(again.train, data.train)
    assert not torch.equal(other.train, data.train)


def test_a_split_takes_every_row_once() -> None:
    for rows in (3, 10, 1797):
        parts = split_rows(rows, seed=3)
        assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(rows))
        assert min(map(len, parts.values())) >= 1


def test_the_three_digits_are_the_same_rows() -> None:
    grey, binary, spread = load("digits"), load("digits_binary"), load("digits_dequantized")
    assert torch.equal((grey.train >= 0.5).float(), binary.train)
    assert torch.equal((spread.train * 17).floor(), grey.train * 16)
    assert spread.levels == 17
    assert 0 <= float(spread.train.min()) <= float(spread.train.max()) < 1


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_tables_are_standardised_by_the_training_part_only(name: str) -> None:
    data = load(name)
    torch.testing.assert_close(data.train.mean(0), torch.zeros(data.train.shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(data.train.std(0, correction=0), torch.ones(data.train.shape[1]), rtol=0, atol=1e-4)
    assert float(data.test.mean(0).abs().max()) > 1e-3


def test_unknown_names_get_the_list_and_the_closest() -> None:
    with pytest.raises(ValueError, match=re.escape("did you mean digits_binary")) as caught:
        load("digit_binary")
    assert "checkerboard" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="train, valid or test"):
        load("moons").part("dev")
