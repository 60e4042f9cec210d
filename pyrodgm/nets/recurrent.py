"""Recurrent networks over tokens: one that says what comes next, one that reads a sentence to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RecurrentNet", "TokenEncoder"]


class RecurrentNet(nn.Module):
    r"""Features of what comes next at every place of a sequence; ``out`` makes logits of them.

    .. math:: h_t = \mathrm{RNN}(h_{t-1}, [e(x_{t-1}), c]), \qquad h_0 = \tanh(W c + b), \qquad
        \text{logits}_t = U h_t + a \quad (\text{or } U [h_t, c] + a \text{ with } \mathrm{skip})

    Token V stands for "no word": it comes before the first one, and in the place of one that is withheld.

    Args:
        vocabulary: V.
        hidden: widths of the recurrent layers.
        embedding: size E of a word's vector.
        context: C; it enters the initial states and the first layer at every step. Without one, states begin at zero.
        cell: ``nn.LSTM`` or ``nn.GRU``; the LSTM's memory begins at W c + b.
        dropout: of the embeddings and of each layer's outputs, not of what passes from step to step.
        skip: the context enters the logits of every step, too.
    Shapes: previous tokens (N, T), context (N, C) -> features (N, T, F) and the states after them, one a layer.
    Raises: ValueError for a vocabulary below 2 or no layer.
    Source: Mikolov et al. (2010), Interspeech; Zaremba et al. (2014), arXiv:1409.2329 (dropout); Dieng et al. (2019),
        arXiv:1807.04863 (skip).
    Example:
        >>> net = RecurrentNet(vocabulary=5, hidden=[8])
        >>> features, states = net(torch.tensor([[5, 1, 2]]))
        >>> net.out(features).shape
        torch.Size([1, 3, 5])
    """

    def __init__(
        self,
        vocabulary: int,
        hidden: Sequence[int] = (256,),
        embedding: int = 128,
        context: int = 0,
        cell: type[nn.LSTM | nn.GRU] = nn.LSTM,
        dropout: float = 0.0,
        skip: bool = False,
    ) -> None:
        super().__init__()
        if vocabulary < 2 or not hidden:
            raise ValueError(f"expected vocabulary >= 2 and at least one layer, got {vocabulary} and {tuple(hidden)}")
        self.vocabulary, self.context, self.skip, self.hidden = vocabulary, context, skip, tuple(hidden)
        self.embed = nn.Embedding(vocabulary + 1, embedding)
        self.layers = _layers(cell, embedding + context, hidden)
        self.start = nn.Linear(context, sum(hidden)) if context else None
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden[-1] + (context if skip else 0), vocabulary)

    def forward(
        self, previous: Tensor, context: Tensor | None = None, states: list[Any] | None = None
    ) -> tuple[Tensor, list[Any]]:
        if states is None:
            states = self._begin(context)
        beside = None if context is None else context.unsqueeze(1).expand(-1, previous.shape[1], -1)  # (N, T, C)
        h = self.dropout(self.embed(previous))
        if beside is not None:
            h = torch.cat((h, beside), -1)
        after = []
        for layer, state in zip(self.layers, states, strict=True):
            h, state = layer(h, state)
            after.append(state)
            h = self.dropout(h)
        if self.skip and beside is not None:
            h = torch.cat((h, beside), -1)
        return h, after

    def _begin(self, context: Tensor | None) -> list[Any]:
        if self.start is None or context is None:
            return [None] * len(self.layers)
        begins = self.start(context).unsqueeze(0).split(list(self.hidden), -1)  # (1, N, H) a layer
        return [
            # cuDNN takes no memory that is a part of a larger tensor
            (begin.tanh(), begin.contiguous()) if isinstance(layer, nn.LSTM) else begin.tanh()
            for layer, begin in zip(self.layers, begins, strict=True)
        ]


class TokenEncoder(nn.Module):
    """A sentence to numbers, such as a Gaussian's parameters: the last layer's state at its end.

    As the net of a guide: ``Parametric(dist.Normal, Z, context=T + C, net=TokenEncoder(T, V, 2 * Z))``.

    Args:
        length: T.
        vocabulary: V.
        outputs: output size.
        hidden: widths of the recurrent layers.
        embedding: size of a word's vector.
        end: the token that ends a sentence, behind which nothing is read; None reads all T.
        context: size C of what stands behind the tokens; it joins the last state.
        cell: ``nn.LSTM`` or ``nn.GRU``.
    Shapes: tokens as floating-point numbers, with the context behind them, (*B, T + C) -> (*B, outputs).
    Source: Bowman et al. (2016), arXiv:1511.06349, section 3.
    Example:
        >>> TokenEncoder(length=3, vocabulary=5, outputs=4, hidden=[8])(torch.tensor([1.0, 2.0, 0.0])).shape
        torch.Size([4])
    """

    def __init__(
        self,
        length: int,
        vocabulary: int,
        outputs: int,
        hidden: Sequence[int] = (256,),
        embedding: int = 128,
        end: int | None = 0,
        context: int = 0,
        cell: type[nn.LSTM | nn.GRU] = nn.LSTM,
    ) -> None:
        super().__init__()
        self.length, self.end = length, end
        self.embed = nn.Embedding(vocabulary, embedding)
        self.layers = _layers(cell, embedding, hidden)
        self.out = nn.Linear(hidden[-1] + context, outputs)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        tokens, beside = flat[:, : self.length].long(), flat[:, self.length :]
        h = self.embed(tokens)
        for layer in self.layers:
            h, _ = layer(h)  # (N, T, H)
        if self.end is None:
            last = h[:, -1]
        else:
            words = (tokens != self.end).sum(-1).clamp(max=self.length - 1)  # the end's place, or the last one
            last = h.gather(1, words.reshape(-1, 1, 1).expand(-1, 1, h.shape[-1])).squeeze(1)
        return self.out(torch.cat((last, beside), -1)).reshape(*x.shape[:-1], -1)


def _layers(cell: type[nn.LSTM | nn.GRU], inputs: int, hidden: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(cell(a, b, batch_first=True) for a, b in zip([inputs, *hidden], hidden, strict=False))
