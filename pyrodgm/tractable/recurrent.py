"""The recurrent language model: every word given all words before it."""

from __future__ import annotations

from collections.abc import Sequence

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrodgm.core import Tractable
from pyrodgm.distributions.tokens import TokenSequences
from pyrodgm.nets.recurrent import RecurrentNet

__all__ = ["Recurrent"]


class Recurrent(Tractable):
    r"""A recurrent language model of sequences of at most T tokens.

    .. math:: \log p(x \mid c) = \sum_{t=1}^{\tau} \log \operatorname{softmax}(\mathrm{net}(x_{<t}, c))_{x_t}

    with :math:`\tau` the place of the first ``end``, or T where there is none. What follows the end is padding, which
    is ``end`` again with probability 1, so the probabilities of all sequences sum to one. Scoring feeds the data
    (teacher forcing) in one pass; sampling goes on from the states of the step before. With a latent vector as
    the context it is the decoder of a sentence VAE.

    Args:
        length: T.
        vocabulary: V; x holds the numbers 0 .. V - 1, as :class:`pyrodgm.data.Vocabulary` makes them.
        hidden: widths of the LSTM's layers.
        embedding: size of a word's vector.
        context: size C of the conditioning vector, 0 for none; it enters the initial states and every step.
        end: the token that ends a sequence; None for sequences of T tokens without an end.
        word_dropout: probability in training with which the network does not get to see a previous word, so that it
            has to ask the context; the training loss is then a mean over what is withheld. Densities in eval mode
            and samples withhold nothing.
        net: a :class:`pyrodgm.nets.RecurrentNet` of the same V and C instead (several layers with dropout, a GRU, the
            context in the logits of every step); ``hidden`` and ``embedding`` have then no say.
    Shapes: x (*B, T), context (*B, C) -> log_prob (*B,) in nats.
    Raises: ValueError for a length below 1, an end outside the vocabulary, a net of other sizes.
    Source: Mikolov et al. (2010), Interspeech; as a decoder, with word dropout: Bowman et al. (2016), arXiv:1511.06349,
        sections 3 and 3.1.
    Example:
        >>> model = Recurrent(length=6, vocabulary=10, hidden=[16])
        >>> model.log_prob(model.sample(4)).shape
        torch.Size([4])

        A sentence VAE, its guide an LSTM that reads to the end:

        >>> import pyro.distributions as dist
        >>> from pyrodgm.latent import VAE
        >>> from pyrodgm.nets import TokenEncoder
        >>> from pyrodgm.tractable import Parametric, StandardNormal
        >>> vae = VAE(
        ...     prior=StandardNormal(2),
        ...     likelihood=Recurrent(length=6, vocabulary=10, hidden=[16], context=2),
        ...     guide=Parametric(dist.Normal, 2, context=6, net=TokenEncoder(6, 10, 4, hidden=[16])),
        ... )
        >>> vae.reconstruct(vae.sample(3)).shape
        torch.Size([3, 6])
    """

    def __init__(
        self,
        length: int,
        vocabulary: int,
        *,
        hidden: Sequence[int] = (256,),
        embedding: int = 128,
        context: int = 0,
        end: int | None = 0,
        word_dropout: float = 0.0,
        net: RecurrentNet | None = None,
    ) -> None:
        super().__init__((length,), context)
        if end is not None and not 0 <= end < vocabulary:
            raise ValueError(f"expected end in 0 .. {vocabulary - 1} or None, got {end}")
        if not 0 <= word_dropout <= 1:
            raise ValueError(f"expected word_dropout in [0, 1], got {word_dropout}")
        if net is None:
            net = RecurrentNet(vocabulary, hidden, embedding, context)
        elif (net.vocabulary, net.context) != (vocabulary, context):
            raise ValueError(
                f"expected a net with vocabulary={vocabulary} and context={context}, got {net.vocabulary} and "
                f"{net.context}"
            )
        self.net, self.length, self.end, self.word_dropout = net, length, end, float(word_dropout)

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        return TokenSequences(self.net, self.length, self.end, context, self.word_dropout if self.training else 0.0)
