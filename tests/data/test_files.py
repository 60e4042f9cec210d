"""Files: every kind is read, and every mistake is one line with its cure."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrodgm.data import files, load, load_file, split_rows

RNG = np.random.default_rng(0)


def save(folder: Path, name: str, *args: Any, **arrays: Any) -> Path:
    path = folder / name
    (np.save(path, *args) if args else np.savez(path, **arrays))
    return path


def test_npy_is_split_by_the_seed(tmp_path: Path) -> None:
    path = save(tmp_path, "a.npy", RNG.normal(size=(50, 3)))
    data = load_file(path)
    assert [len(data.part(p)) for p in ("train", "valid", "test")] == [40, 5, 5]
    assert torch.equal(load_file(path).test, data.test)
    assert not torch.equal(load_file(path, seed=1).test, data.test)
    assert not data.binary


def test_bytes_may_stand_in_the_other_order(tmp_path: Path) -> None:
    x = RNG.normal(size=(50, 3))
    native, swapped = (load_file(save(tmp_path, f"{i}.npy", x.astype(kind))) for i, kind in enumerate(("<f8", ">f8")))
    assert torch.equal(native.train, swapped.train)


def test_an_array_may_be_called_d(tmp_path: Path) -> None:
    """``d`` counts the columns of bit-packed rows only where it is one number."""
    x = RNG.normal(size=(30, 2))
    data = load_file(save(tmp_path, "d.npz", d=x))
    assert torch.equal(data.train, load_file(save(tmp_path, "x.npz", x=x)).train)


def test_the_digest_is_of_the_training_rows_and_their_labels(tmp_path: Path) -> None:
    x, y = RNG.integers(0, 2, (30, 2)).astype(np.float32), np.arange(30) % 3
    index = split_rows(30, 0)

    def digest(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], views: str = "") -> str | None:
        return load(f"{save(tmp_path, 'a.npz', x=x, y=y)}{views}").digest

    first = digest(x, y)
    assert first is not None
    assert first == digest(x.astype(np.int64), y) == digest(x, y, ":standardised")
    for part in index:
        changed, labels = x.copy(), y.copy()
        changed[index[part][0]] += 1
        labels[index[part][0]] = (labels[index[part][0]] + 1) % 3
        assert (digest(changed, y) != first) == (digest(x, labels) != first) == (part == "train")
    assert load("moons").digest is None


def test_npz_with_labels(tmp_path: Path) -> None:
    x = RNG.normal(size=(30, 2))
    data = load_file(save(tmp_path, "a.npz", x=x, y=np.where(x[:, 0] > 0, "up", "down")))
    assert data.classes == ("down", "up")
    assert data.labels is not None
    assert torch.equal(data.labels["train"], (data.train[:, 0] > 0).long())


def test_npz_with_its_own_parts(tmp_path: Path) -> None:
    parts = {name: RNG.normal(size=(n, 4)).astype(np.float32) for name, n in (("train", 7), ("valid", 3), ("test", 4))}
    data = load_file(save(tmp_path, "a.npz", **parts))
    for name, array in parts.items():
        assert torch.equal(data.part(name), torch.as_tensor(array))


def test_npz_without_a_valid_part_takes_it_from_train(tmp_path: Path) -> None:
    path = save(tmp_path, "a.npz", train_x=RNG.integers(0, 256, (40, 5, 6), dtype=np.uint8), train_y=np.arange(40) % 3,
                test_x=RNG.integers(0, 256, (9, 5, 6), dtype=np.uint8), test_y=np.arange(9) % 3)  # fmt: skip
    data = load_file(path)
    assert [len(data.part(p)) for p in ("train", "valid", "test")] == [36, 4, 9]
    assert data.image_shape == (5, 6)
    assert data.event_shape == (30,)
    assert float(data.train.max()) <= 1
    assert len(data.classes) == 3
    spread = load(f"{path}:dequantized")
    assert torch.equal((spread.train * 256).floor(), (data.train * 255).round())
    assert load(f"{path}:binary").binary


def test_labels_of_parts_with_types_of_their_own(tmp_path: Path) -> None:
    x = {part: RNG.normal(size=(n, 2)) for part, n in (("train", 8), ("valid", 2), ("test", 4))}
    y = {"train_y": np.arange(8.0) % 2, "valid_y": np.arange(2) % 2, "test_y": np.arange(4) % 2 == 1}
    data = load_file(save(tmp_path, "a.npz", **x, **y))
    assert len(data.classes) == 2
    for part in x:
        assert torch.equal(data.labels[part], torch.arange(len(x[part])) % 2)


@pytest.mark.parametrize("names", ["{part}_y", "y_{part}"])
def test_npz_as_keras_has_it_keeps_its_labels(tmp_path: Path, names: str) -> None:
    x = {part: RNG.normal(size=(n, 2)) for part, n in (("train", 40), ("test", 9))}
    y = {part: np.where(rows[:, 0] > 0, "up", "down") for part, rows in x.items()}
    arrays = {f"x_{part}": rows for part, rows in x.items()} | {names.format(part=p): v for p, v in y.items()}
    data = load_file(save(tmp_path, "a.npz", **arrays))
    assert data.classes == ("down", "up")
    for part in ("train", "valid", "test"):
        assert torch.equal(data.labels[part], (data.part(part)[:, 0] > 0).long())
    for part in ("train", "test"):
        for wrong in (y[part][:-1], np.append(y[part], "up")):
            path = save(tmp_path, "b.npz", **arrays | {names.format(part=part): wrong})
            with pytest.raises(ValueError, match=rf"one label a row, got labels of shape .* rows of {part}"):
                load_file(path)


def test_bit_packed_rows(tmp_path: Path) -> None:
    x = {name: RNG.integers(0, 2, (n, 12), dtype=np.uint8) for name, n in (("train", 9), ("valid", 2), ("test", 2))}
    path = save(tmp_path, "a.npz", d=12, **{k: np.packbits(v, axis=1) for k, v in x.items()})
    data = load(f"{path}:3x4")
    assert torch.equal(data.train, torch.as_tensor(x["train"]).float())
    assert data.binary
    assert data.image_shape == (3, 4)
    packed = {"x": np.packbits(x["train"], axis=1), "y": np.arange(9) % 2}
    whole = load(str(save(tmp_path, "b.npz", d=12, **packed)))
    index = split_rows(9, 0)["train"]
    assert torch.equal(whole.train, torch.as_tensor(x["train"]).float()[index])
    assert torch.equal(whole.labels["train"], index % 2)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables(tmp_path: Path, ending: str) -> None:
    import pandas as pd

    table = pd.DataFrame({"a": np.arange(20.0), "label": ["x", "y"] * 10, "b": np.arange(20)})
    path = tmp_path / f"t.{ending}"
    table.to_csv(path, index=False) if ending == "csv" else table.to_parquet(path)
    data = load(f"{path}:standardised")
    assert data.event_shape == (2,)
    assert data.classes == ("x", "y")
    assert abs(float(data.train.mean())) < 1e-6


def test_a_csv_without_names_keeps_its_first_row(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "t.csv", np.arange(20.0).reshape(10, 2), delimiter=",")
    data = load_file(tmp_path / "t.csv")
    assert sum(len(data.part(p)) for p in ("train", "valid", "test")) == 10


def test_pictures(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(12):
        folder = tmp_path / f"class{i % 2}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    data = load_file(tmp_path)
    assert data.image_shape == (3, 4, 5)
    assert data.classes == ("class0", "class1")
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(tmp_path / "class0" / "z.png")
    with pytest.raises(ValueError, match="resize the pictures"):
        load_file(tmp_path)


def test_pictures_of_more_than_eight_bits_are_refused(tmp_path: Path) -> None:
    """Read as others are, all their greys above 255 would be white."""
    from PIL import Image

    grey = (1000 * np.arange(12)).reshape(3, 4)
    for i in range(9):
        Image.fromarray(grey.astype(np.uint16)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match=r"0\.png: more than 8 bits a channel .* 8-bit files"):
        load_file(tmp_path)


def test_text_is_windows_of_one_hot_characters(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abc" * 200)
    data = load_file(tmp_path / "t.txt")
    assert data.event_shape == (96,)
    assert data.binary
    assert bool((data.train.unflatten(1, (32, 3)).sum(-1) == 1).all())


def test_mistakes_are_one_line_with_a_cure(tmp_path: Path) -> None:
    bad = np.zeros((10, 2))
    bad[3, 1] = bad[5, 0] = np.nan
    (tmp_path / "text.csv").write_text("a,b\n1,red\n2,blue\n3,red\n")
    (tmp_path / "mixed.csv").write_text("a,b\n1,2\n2,red\n3,4\n")
    (tmp_path / "nan.csv").write_text("a,b\n1,2\n2,\n3,4\n")
    (tmp_path / "unlabelled.csv").write_text("a,label\n1,red\n2,\n3,red\n4,\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "broken.npz").write_bytes(b"no")
    (tmp_path / "cut.npz").write_bytes(save(tmp_path, "whole.npz", x=np.zeros((9, 2))).read_bytes()[:100])
    (tmp_path / "cut.npy").write_bytes(b"")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(RNG.bytes(5000).hex().encode())[:-2000])
    np.savez_compressed(tmp_path / "flipped.npz", x=RNG.normal(size=(99, 9)))
    flipped = bytearray((tmp_path / "flipped.npz").read_bytes())
    flipped[100:400] = bytes(300)
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "none").mkdir()
    (tmp_path / "a.doc").write_text("")
    cases = {
        save(tmp_path, "nan.npy", bad): "row 3 is NaN or infinite in feature 1 (2 such rows); drop these rows",
        save(tmp_path, "flat.npy", np.zeros(4)): "x[:, None]",
        save(tmp_path, "two.npy", np.zeros((2, 2))): "at least 3 rows",
        save(tmp_path, "object.npy", np.array([{}, {}])): "not readable",
        save(tmp_path, "keys.npz", a=bad, b=bad): "rename them",
        save(tmp_path, "parts.npz", train=np.zeros((9, 2)), valid=np.zeros((9, 3)), test=np.zeros((9, 2))): "one shape",
        save(tmp_path, "xy.npz", x=np.zeros((9, 2)), y=np.zeros(8)): "one label a row",
        tmp_path / "text.csv": "column 'b' holds text such as 'red'",
        tmp_path / "mixed.csv": "column 'b' holds text such as 'red'",
        tmp_path / "nan.csv": "row 1 is NaN or infinite in column 'b'",
        tmp_path / "unlabelled.csv": "row 1 has no label (2 such rows); drop them",
        tmp_path / "empty.csv": "not readable",
        tmp_path / "short.txt": "longer text",
        tmp_path / "broken.npz": "not readable",
        tmp_path / "cut.npz": "not readable",
        tmp_path / "cut.npy": "not readable",
        tmp_path / "cut.txt.gz": "not readable",
        tmp_path / "flipped.npz": "not readable",
        tmp_path / "none": "no pictures",
        tmp_path / "a.doc": "numpy.save",
        tmp_path / "absent.npy": "does not exist",
    }
    for path, cure in cases.items():
        with pytest.raises(ValueError, match=r".+") as caught:
            load_file(path)
        assert cure in str(caught.value), path
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


def test_flat_rows_may_be_colour_pictures(tmp_path: Path) -> None:
    data = load(f"{save(tmp_path, 'a.npy', RNG.uniform(size=(20, 3 * 4 * 5)))}:binary:3x4x5")
    assert data.image_shape == (3, 4, 5)
    assert data.event_shape == (60,)
    assert data.name.endswith("a.npy:binary:3x4x5")


def test_views_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, "a.npy", 2 + RNG.normal(size=(20, 4)))
    with pytest.raises(ValueError, match="expected 4 pixels"):
        load(f"{path}:3x3")
    with pytest.raises(ValueError, match="1 or 3 channels"):
        load(f"{path}:2x2x1")
    with pytest.raises(ValueError, match="grey levels"):
        load(f"{path}:dequantized")


@pytest.mark.parametrize(
    ("text", "rows", "columns"),
    [
        ("0.5,0.5,1.2\n" + "0,1,2\n" * 9, 10, 3),  # equal numbers in the first row
        ("0.5,1\n" * 10, 10, 2),
        ("0,1,2\n" + "0.5,0,1\n" * 10, 10, 3),  # the names that pandas writes for unnamed columns
        (",a,b\n" + "".join(f"{i},0.5,{i * i}\n" for i in range(10)), 10, 2),  # and the index that it writes
        ("a,b\n" + "0.5,1\n" * 10, 10, 2),
    ],
)
def test_the_first_line_of_a_csv(tmp_path, text, rows, columns):
    path = tmp_path / "x.csv"
    path.write_text(text)
    data = load(path)
    assert sum(len(data.part(p)) for p in ("train", "valid", "test")) == rows
    assert data.event_shape == (columns,)


def test_pictures_with_channels_last_and_labels_that_do_not_fit(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((20, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"transpose\(0, 3, 1, 2\)"):
        load(path)
    np.savez(path, x=np.arange(80.0).reshape(20, 4), y=np.eye(4)[np.arange(20) % 4])
    with pytest.raises(ValueError, match=r"one label a row, .*argmax"):
        load(path)
    np.savez(path, x=np.arange(80.0).reshape(20, 4), y=np.array([str(i % 12) for i in range(20)]))
    assert load(path).classes == tuple(str(i) for i in range(12))


def test_a_long_text_says_how_much_of_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_WINDOWS", 10)
    path = tmp_path / "x.txt"
    path.write_text("abcd" * 200)
    assert load(path).description.endswith("its first 320 characters")
    path.write_text("abcd" * 80)
    assert "its first" not in load(path).description
