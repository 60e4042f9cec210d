"""Sentences to numbers and back."""

import gzip

import pytest
import torch

from pyrodgm.data import Vocabulary, read_lines

LINES = ["the cat sat on the mat", "the dog sat", "a cat", "<unk> dog </s>"]


def test_round_trip_of_known_words():
    vocabulary = Vocabulary.of(LINES[:3])
    assert len(vocabulary) == 2 + len({word for line in LINES[:3] for word in line.split()})
    x = vocabulary.encode(LINES[:3], length=8)
    assert x.shape == (3, 8)
    assert x.dtype == torch.float32
    assert vocabulary.decode(x) == LINES[:3]
    assert (x != 0).sum(-1).tolist() == [6, 3, 2]


def test_the_most_frequent_words_are_kept():
    vocabulary = Vocabulary.of(LINES, size=5)
    # "the" three times, then "cat", "sat", "dog" twice each, of which two came first
    assert vocabulary.words == ["</s>", "<unk>", "the", "cat", "sat"]
    assert vocabulary.encode(["the dog sat on mars"], 6).tolist() == [[2, 1, 4, 1, 1, 0]]
    assert vocabulary.decode(torch.tensor([[2.0, 1.0, 0.0, 0.0]])) == ["the <unk>"]


def test_special_words_of_the_text_are_the_special_ones():
    vocabulary = Vocabulary.of(LINES, unknown="<unk>", end="</s>")
    assert vocabulary.words.count("<unk>") == vocabulary.words.count("</s>") == 1
    assert vocabulary.encode(["<unk> cat"], 3)[0, 0] == 1


def test_a_line_ends_at_the_word_for_the_end():
    """Words behind it would be no sentence that a model of sentences has a probability for."""
    vocabulary = Vocabulary.of(LINES)
    assert torch.equal(vocabulary.encode(["the cat </s> sat", "</s> dog"], 4), vocabulary.encode(["the cat", ""], 4))


def test_long_lines_are_cut_without_an_end():
    vocabulary = Vocabulary.of(LINES)
    x = vocabulary.encode(LINES[:1], 3)
    assert vocabulary.decode(x) == ["the cat sat"]
    assert not bool((x == 0).any())


def test_lines_of_files(tmp_path):
    text = "the cat \n\n  sat\n"
    (tmp_path / "a.txt").write_text(text)
    with gzip.open(tmp_path / "a.txt.gz", "wt") as file:
        file.write(text)
    assert read_lines(tmp_path / "a.txt") == read_lines(str(tmp_path / "a.txt.gz")) == ["the cat", "sat"]
    (tmp_path / "b.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"b\.txt: expected lines of text"):
        read_lines(tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Vocabulary(["a", "b"]), "at least three different words"),
        (lambda: Vocabulary(["a", "b", "b"]), "2 different"),
        (lambda: Vocabulary.of(LINES).encode(LINES, 0), "length >= 1"),
        (lambda: Vocabulary.of(LINES).encode("a single line", 3), "an iterable of lines"),
    ],
)
def test_mistakes_are_named(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
