"""Every form of data gives the same rows, and bad rows are refused before the first step."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import pyrodgm
from pyrodgm.engine.batches import as_batches
from pyrodgm.engine.rows import as_rows
from pyrodgm.objectives import MaximumLikelihood
from pyrodgm.tractable import MADE, Parametric, RealNVP

CPU = torch.device("cpu")


class Rows(Dataset):
    """A map-style dataset over any arrays."""

    def __init__(self, *arrays):
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays[0])

    def __getitem__(self, i):
        return self.arrays[0][i] if len(self.arrays) == 1 else tuple(a[i] for a in self.arrays)


def forms(x, context=None):
    """The same rows in every form that fit takes, by name."""
    arrays = (x,) if context is None else (x, context)
    given = x if context is None else (x, context)
    tensors = [torch.as_tensor(a) for a in arrays]
    yield "arrays", given
    yield "tensors", tensors[0] if context is None else tuple(tensors)
    yield "Dataset", Rows(*arrays)
    yield "TensorDataset", TensorDataset(*tensors)
    yield "DataLoader", DataLoader(Rows(*arrays), batch_size=4)
    yield "shuffled DataLoader", DataLoader(TensorDataset(*tensors), batch_size=4, shuffle=True)


NAMES = [name for name, _ in forms(np.zeros((2, 2)))]


def real(dtype=np.float64):
    return np.random.default_rng(0).normal(size=(10, 2)).astype(dtype)


def fit(model, data, **options):
    return pyrodgm.fit(model, data, **{"batch_size": 4, "progress": False, "device": "cpu", "epochs": 1, **options})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_])
def test_every_form_and_number_type_gives_the_same_rows(name, dtype):
    x = (real() > 0).astype(dtype)
    context = real()
    model = MADE(features=2, hidden=[4], context=2)
    batches = as_batches(model, dict(forms(x, context))[name], None, 4, CPU)
    assert batches.rows == 10
    assert batches.per_epoch == 3
    seen = [torch.cat(pair, -1) for pair in batches.epoch(seed=0, epoch=1)]
    assert all(rows.dtype == torch.float32 for rows in seen)
    expected = np.concatenate((x.astype(np.float32), context.astype(np.float32)), -1)
    assert sorted(map(tuple, torch.cat(seen).tolist())) == sorted(map(tuple, expected.tolist()))


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_is_a_function_of_seed_and_number_and_can_start_inside(name):
    batches = as_batches(RealNVP(features=2), dict(forms(real()))[name], None, 4, CPU)

    def epoch(seed, number, start=0):
        return [x.clone() for x, _ in batches.epoch(seed, number, start)]

    first = epoch(0, 1)
    torch.rand(3)
    before = torch.get_rng_state()
    again = epoch(0, 1)
    rest = epoch(0, 1, start=2)
    assert torch.equal(before, torch.get_rng_state())
    assert len(again) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len(rest) == 1
    assert torch.equal(rest[0], first[2])
    if name != "DataLoader":  # a loader that does not shuffle is taken at its word
        assert not torch.equal(torch.cat(epoch(0, 2)), torch.cat(first))
        assert not torch.equal(torch.cat(epoch(1, 1)), torch.cat(first))
        assert not torch.equal(torch.cat(epoch(1, 1)), torch.cat(epoch(0, 2)))  # no function of their sum


@pytest.mark.parametrize("name", ["tensors", "Dataset", "DataLoader"])
@pytest.mark.parametrize("rows", [10, 12])
def test_ranks_share_out_the_batches_of_one_process(name, rows):
    x = np.arange(2.0 * rows).reshape(rows, 2)

    def epoch(rank, world, even=True):
        data = dict(forms(x))[name]
        batches = as_batches(RealNVP(features=2), data, None, 4, CPU, rank=rank, world=world, even=even)
        assert batches.rows == rows
        return [b for b, _ in batches.epoch(3, 1)]

    whole = epoch(0, 1)
    shares = list(zip(epoch(0, 2), epoch(1, 2), strict=True))
    assert len(whole) == len(shares)
    for batch, (a, b) in zip(whole, shares, strict=True):
        assert len(a) == len(b)
        assert torch.equal(torch.cat((a, b)).sort(0).values, batch.sort(0).values)
    assert sum(len(part) for rank in range(4) for part in epoch(rank, 4, even=False)) == rows  # held-out rows all count


@pytest.mark.parametrize("name", ["tensors", "Dataset", "DataLoader"])
@pytest.mark.parametrize(("rows", "world"), [(9, 1), (9, 2), (10, 4), (13, 4)])
def test_every_rank_has_as_many_batches_as_an_epoch_says(name, rows, world):
    """Also where the last batch of a loader has no row for some of the ranks: then it is nobody's."""
    data = dict(forms(np.arange(2.0 * rows).reshape(rows, 2)))[name]
    for rank in range(world):
        batches = as_batches(RealNVP(features=2), data, None, 4, CPU, rank=rank, world=world)
        whole = [x for x, _ in batches.epoch(3, 1)]
        assert len(whole) == batches.per_epoch
        for start in range(len(whole)):
            rest = [x for x, _ in batches.epoch(3, 1, start)]
            assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))
    with pytest.raises(ValueError, match=r"row.* for each of 16 processes"):
        as_batches(RealNVP(features=2), data, None, 16, CPU, rank=0, world=16)


def test_a_loaders_own_generator_is_left_as_it_was():
    generator = torch.Generator().manual_seed(9)
    loader = DataLoader(TensorDataset(torch.as_tensor(real())), batch_size=4, shuffle=True, generator=generator)
    before = generator.get_state()
    fit(RealNVP(features=2), loader, epochs=2)
    assert torch.equal(before, generator.get_state())


@pytest.mark.parametrize("where", ["sampler", "batch sampler"])
def test_the_order_of_a_sampler_with_its_own_generator_comes_again(where):
    generator = torch.Generator().manual_seed(9)
    data = TensorDataset(torch.as_tensor(real()))
    sampler = RandomSampler(data, generator=generator)
    by = {"batch_sampler": BatchSampler(sampler, 4, False)}
    if where == "sampler":
        by = {"sampler": sampler, "batch_size": 4}
    before = generator.get_state()
    batches = as_batches(RealNVP(features=2), DataLoader(data, **by), None, 4, CPU)
    first, again, other = (torch.cat([x for x, _ in batches.epoch(0, epoch)]) for epoch in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, generator.get_state())


def test_a_dataset_is_checked_in_batches_of_the_run():
    """A batch of 1024 need not fit where the user's does."""

    class Counted(Rows):
        read = 0

        def __getitems__(self, index):
            Counted.read = max(Counted.read, len(index))
            return [self[i] for i in index]

    as_batches(RealNVP(features=2), Counted(np.zeros((50, 2))), None, 8, CPU)
    assert Counted.read == 8


class Pairs(MaximumLikelihood):
    """Keeps each row that it sees beside its context."""

    def __init__(self):
        super().__init__()
        self.seen = {"loss": [], "held out": []}

    def loss(self, model, x, context=None, *, n=None):
        if torch.is_grad_enabled():
            self._note("loss", x, context)
        return super().loss(model, x, context, n=n)

    def held_out(self, model, x, context=None, *, n=None):
        self._note("held out", x, context)
        return super().held_out(model, x, context, n=n)

    def _note(self, where, x, context):
        self.seen[where] += [x if context is None else torch.cat((x, context), -1)]


def test_an_unconditional_model_drops_labels_and_a_conditional_one_reads_each_rows_context():
    x, labels, context = real(), np.arange(10), np.eye(10)
    pair, pairs = (x, context), Rows(x, context)
    plain, whole = torch.as_tensor(x).float(), torch.as_tensor(np.concatenate(pair, -1)).float()
    for size, data, options, expected in (
        (0, Rows(x, labels), {"validate": Rows(x, labels)}, plain),
        (10, pair, {"validate": pair}, whole),
        (10, pairs, {"validate": pair}, whole),
        (10, pair, {"validate": pairs}, whole),
        (10, x, {"context": context, "validate": pair}, whole),
    ):
        objective = Pairs()
        fit(RealNVP(features=2, context=size), data, objective=objective, **options)
        for found in objective.seen.values():
            assert sorted(torch.cat(found).tolist()) == sorted(expected.tolist())


class Counts(MaximumLikelihood):
    steps = 0

    def loss(self, model, x, context=None, *, n=None):
        Counts.steps += 1
        return super().loss(model, x, context, n=n)


def changed(row, value, dtype=np.float64):
    x = real(dtype)
    x[row, 1] = value
    return x


BAD = {
    "nan": (changed(7, math.nan), ValueError, "nan in row 7 of data"),
    "inf": (changed(5, -math.inf), ValueError, "-inf in row 5 of data"),
    "too large for float32": (changed(3, 1e60), ValueError, "inf in row 3 of data"),
    "width": (np.zeros((10, 3)), ValueError, r"shape \(\*, 2\), got \(\d+, 3\)"),
    "dimensions": (np.zeros((10, 5, 2)), ValueError, r"shape \(rows, 2\), got"),
    "complex": (real().astype(complex), TypeError, "numbers|real"),
}


@pytest.mark.parametrize("name", [n for n in NAMES if n != "shuffled DataLoader"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("held_out", [False, True])
def test_bad_rows_are_refused_before_the_first_step(name, bad, held_out):
    x, error, message = BAD[bad]
    data = dict(forms(x))[name]
    Counts.steps = 0
    given = {"data": real(), "validate": data} if held_out else {"data": data}
    with pytest.raises(error, match=message.replace("data", "validate") if held_out else message):
        fit(Parametric(dist.Normal, 2), given.pop("data"), objective=Counts(), **given)
    assert Counts.steps == 0


@pytest.mark.parametrize("workers", [None, 0, 1])
@pytest.mark.parametrize(("kind", "odd"), [(torch.ones, 1), (torch.ones, 3), (np.ones, 3)])
def test_rows_of_several_shapes_are_refused(kind, odd, workers):
    """A Dataset's and a loader's, read by this process or by a worker: torch's collation raises RuntimeError."""
    data = Rows([kind(odd if i == 6 else 2) for i in range(10)])
    order = ""
    if workers is not None:
        data, order = DataLoader(data, batch_size=4, num_workers=workers), " in its loader's order"
    with pytest.raises(ValueError, match=rf"rows of one shape.* from row 4 of data{order} on \(.*pad or cut"):
        fit(RealNVP(features=2), data)


def test_an_error_of_the_users_own_dataset_is_not_another():
    class Broken(Rows):
        def __getitem__(self, i):
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        fit(RealNVP(features=2), Broken(real()))


def test_a_shuffled_loader_is_checked_too():
    """In its own order, and the message says so."""
    with pytest.raises(ValueError, match=r"nan in row \d of data in its loader's order"):
        fit(Parametric(dist.Normal, 2), dict(forms(changed(7, math.nan)))["shuffled DataLoader"])


@pytest.mark.parametrize("name", [n for n in NAMES if n != "shuffled DataLoader"])
def test_rows_outside_the_support_are_refused(name):
    x = np.ones((10, 2))
    x[6, 0] = 0.5
    with pytest.raises(ValueError, match=r"support.*row 6 of data"):
        fit(MADE(features=2, hidden=[4]), dict(forms(x))[name])


@pytest.mark.parametrize("data", [np.zeros((0, 2)), torch.zeros(0, 2), Rows(np.zeros((0, 2)))])
def test_empty_data_are_refused(data):
    with pytest.raises(ValueError, match="at least one row"):
        fit(RealNVP(features=2), data)


@pytest.mark.parametrize(
    "data",
    [[["a", "b"]], np.array([[{}, {}]]), Rows(["a", "b"]), np.array([["2020-01-01"] * 2], dtype="datetime64")],
)
def test_what_is_no_number_is_refused(data):
    with pytest.raises(TypeError, match="numbers"):
        fit(RealNVP(features=2), data)


@pytest.mark.parametrize("data", [torch.eye(2).to_sparse(), scipy.sparse.csr_matrix(np.eye(2))])
def test_sparse_rows_are_refused_with_the_way_in(data):
    with pytest.raises(TypeError, match="BagOfWords"):
        fit(RealNVP(features=2), data)


def test_arrays_that_torch_cannot_share_are_copied():
    frozen, x = real(np.float32), real(np.float32)
    frozen.flags.writeable = False
    for data in (frozen, np.ascontiguousarray(x[::-1])[::-1], x.astype(">f4"), x.astype("<f4")):
        rows, _ = as_rows(RealNVP(features=2), data)
        torch.testing.assert_close(rows, torch.from_numpy(x))


def test_what_is_masked_is_no_number():
    x = np.ma.masked_array(real(), mask=False)
    assert torch.equal(as_rows(RealNVP(features=2), x)[0], as_rows(RealNVP(features=2), real())[0])
    x[3, 1] = np.ma.masked
    with pytest.raises(ValueError, match="data without masked values; impute them"):
        fit(RealNVP(features=2), x)


def test_data_of_another_kind_are_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.zeros(4, 2))

    with pytest.raises(TypeError, match="length"):
        fit(RealNVP(features=2), DataLoader(Stream(), batch_size=2))
    with pytest.raises(TypeError, match="random access"):
        fit(RealNVP(features=2), Stream())
    with pytest.raises(ValueError, match="different lengths"):
        fit(RealNVP(features=2), [[1.0, 2.0], [3.0]])
    with pytest.raises(ValueError, match="pairs"):
        fit(RealNVP(features=2, context=1), Rows(real(), real()), context=np.zeros((10, 1)))
    with pytest.raises(ValueError, match="tuple of 3"):
        fit(RealNVP(features=2), (real(), real(), real()))


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, r"context of shape \(\*, 3\), got none"),
        (np.zeros((9, 3)), "for each of the 10 rows"),
        (np.zeros((10, 2)), r"context of shape \(\*, 3\)"),
        (np.zeros(10, dtype=int), "one-hot"),
        (np.full((10, 3), math.nan), "row 0 of data's context"),
    ],
)
def test_a_bad_context_is_refused(context, message):
    with pytest.raises(ValueError, match=message):
        fit(RealNVP(features=2, context=3), real(), context=context)


def test_a_loader_of_dicts_is_told_what_to_yield():
    loader = DataLoader([{"image": torch.zeros(2), "label": 0} for _ in range(4)], batch_size=2)
    with pytest.raises(TypeError, match="got a dict of image, label; give it a collate_fn"):
        pyrodgm.fit(RealNVP(2), loader, epochs=1, progress=False)


def test_a_batch_stands_for_the_rows_that_an_epoch_reads():
    """A sampler may leave rows out or repeat them: global latents are weighed by what is read."""
    data = TensorDataset(torch.zeros(50, 2))
    for sampler, rows in ((SubsetRandomSampler(range(12)), 12), (WeightedRandomSampler(torch.ones(50), 80), 80)):
        loader = DataLoader(data, batch_size=10, sampler=sampler)
        assert as_batches(RealNVP(2), loader, None, 10, torch.device("cpu")).rows == rows
