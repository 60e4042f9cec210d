"""Topic models of bags of words: ProdLDA, NVDM, ETM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyrodgm.core import Tractable
from pyrodgm.distributions.words import WordCounts
from pyrodgm.latent.vae import VAE
from pyrodgm.nets.words import BagEncoder, LogLinear, ProductOfTopics, TopicEmbeddings
from pyrodgm.tractable.parametric import Parametric, StandardNormal

__all__ = ["ETM", "NVDM", "DirichletLaplace", "ProdLDA", "TopicModel", "Words"]


class DirichletLaplace(Tractable):
    r"""A Dirichlet over proportions :math:`\theta = \operatorname{softmax}(z)` as a normal over z.

    .. math:: \mu_k = \log \alpha_k - \tfrac1K \sum_i \log \alpha_i, \quad
        \Sigma_{kk} = \tfrac{1}{\alpha_k} \left(1 - \tfrac2K\right) + \tfrac{1}{K^2} \sum_i \tfrac{1}{\alpha_i}

    Args:
        concentration: :math:`\alpha`, (K,), positive.
    Shapes: z (*B, K) -> log_prob (*B,) in nats.
    Raises: ValueError if a concentration is not positive and finite, or K < 2, where the variance is 0.
    Source: Srivastava and Sutton (2017), arXiv:1703.01488, eq. 3 (Laplace approximation in the softmax basis).
    Example:
        >>> DirichletLaplace(torch.ones(4)).condition().base_dist.scale
        tensor([0.8660, 0.8660, 0.8660, 0.8660])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, concentration: Tensor) -> None:
        alpha = torch.as_tensor(concentration)
        alpha = alpha if alpha.is_floating_point() else alpha.to(torch.get_default_dtype())
        if alpha.dim() != 1 or len(alpha) < 2 or not bool(((alpha > 0) & alpha.isfinite()).all()):
            raise ValueError(f"expected positive concentrations of at least two topics, (K,), got {concentration}")
        super().__init__(tuple(alpha.shape))
        topics, log = len(alpha), alpha.log()
        variance = (1 - 2 / topics) / alpha + (1 / alpha).sum() / topics**2
        self.register_buffer("loc", log - log.mean())
        self.register_buffer("scale", variance.sqrt())

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        self.check(None, context)
        return dist.Normal(self.loc, self.scale).to_event(1)


class Words(Tractable):
    """p(words | z) by a network's log-probabilities.

    Args:
        net: (*B, K) -> normalised log-probabilities (*B, V).
        words: V.
        topics: K.
        length: words of a sampled document.
    Shapes: x (*B, V) counts, context (*B, K) -> log_prob (*B,) in nats, see :class:`WordCounts`.
    Raises: ValueError for length < 1.
    """

    def __init__(self, net: nn.Module, words: int, topics: int, length: int = 100) -> None:
        super().__init__((words,), topics)
        if length < 1:
            raise ValueError(f"expected length >= 1 words, got {length}")
        self.net, self.length = net, length

    def condition(self, context: Tensor | None = None) -> TorchDistribution:
        _, context = self.check(None, context)
        return WordCounts(self.net(context), self.length)


class TopicModel(VAE):
    """A VAE of word counts x (B, V) whose decoder has topics: the common part of the three.

    Rows may come from :class:`pyrodgm.data.BagOfWords`, which keeps the corpus sparse.

    Args:
        prior: over z, (K,).
        decoder: (*B, K) -> log-probabilities (*B, V), with an attribute ``topics`` (K, V).
        encoder: counts (*B, V) -> (*B, 2 K), means and log-scales.
        words: V.
        length: words of a sampled document.
    """

    def __init__(self, prior: Tractable, decoder: nn.Module, encoder: nn.Module, words: int, length: int = 100) -> None:
        topics = prior.event_shape.numel()
        super().__init__(
            prior=prior,
            likelihood=Words(decoder, words, topics, length),
            guide=Parametric(dist.Normal, topics, context=words, net=encoder),
        )

    @property
    def topics(self) -> Tensor:
        """Weights by which the words of each topic rank, (K, V): log-probabilities, or a decoder's columns."""
        with torch.no_grad():
            return cast(Any, self.likelihood).net.topics.detach()

    def top_words(self, n: int = 10) -> Tensor:
        """Numbers of the n highest words of each topic, (K, n).

        Raises: ValueError for n < 1 or more words than there are.
        """
        words = self.event_shape[0]
        if not 1 <= n <= words:
            raise ValueError(f"expected n of 1, ..., {words} words, got {n}")
        return self.topics.topk(n, -1).indices


class ProdLDA(TopicModel):
    r"""Latent Dirichlet allocation with a product of experts for the words, and an amortized guide.

    .. math:: z \sim N(\mu(\alpha), \Sigma(\alpha)), \quad \theta = \operatorname{softmax}(z), \quad
        w \sim \operatorname{softmax} \mathrm{BN}(\beta^T \theta)

    with the Dirichlet prior in its Laplace approximation and batch norm on the guide's outputs and on
    the words' logits. Adam with a high first momentum, such as ``betas=(0.99, 0.999)``, and lr 2e-3 keeps topics
    from collapsing (section 3.3 of the paper).

    Args:
        words: V.
        topics: K.
        hidden: widths of the guide's hidden layers.
        concentration: of the symmetric Dirichlet.
        dropout: of the guide's last hidden layer and of the proportions.
        length: words of a sampled document.
    Shapes: x (B, V) counts, z (B, K).
    Source: Srivastava and Sutton (2017), arXiv:1703.01488.
    Example:
        >>> model = ProdLDA(words=30, topics=4)
        >>> model.log_weights(model.sample(5), particles=2).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        words: int,
        topics: int = 50,
        hidden: Sequence[int] = (100, 100),
        concentration: float = 1.0,
        dropout: float = 0.2,
        length: int = 100,
    ) -> None:
        super().__init__(
            prior=DirichletLaplace(torch.full((topics,), concentration)),
            decoder=ProductOfTopics(topics, words, dropout),
            encoder=BagEncoder(words, topics, hidden, nn.Softplus, dropout, norm=True),
            words=words,
            length=length,
        )


class NVDM(TopicModel):
    r"""Neural variational document model: :math:`z \sim N(0, I)`, :math:`w \sim \operatorname{softmax}(R z + b)`.

    Args:
        words: V.
        topics: K.
        hidden: widths of the guide's hidden layers.
        length: words of a sampled document.
    Shapes: x (B, V) counts, z (B, K).
    Source: Miao et al. (2016), arXiv:1511.06038, section 3.
    Example:
        >>> NVDM(words=30, topics=4).top_words(3).shape
        torch.Size([4, 3])
    """

    def __init__(self, words: int, topics: int = 50, hidden: Sequence[int] = (500, 500), length: int = 100) -> None:
        super().__init__(
            prior=StandardNormal(topics),
            decoder=LogLinear(topics, words),
            encoder=BagEncoder(words, topics, hidden, nn.Tanh),
            words=words,
            length=length,
        )


class ETM(TopicModel):
    r"""Embedded topic model: topics are points in the space of word embeddings.

    .. math:: z \sim N(0, I), \quad \theta = \operatorname{softmax}(z), \quad
        p(w) = \sum_k \theta_k \operatorname{softmax}(\rho\, \alpha_k)_w

    The guide reads each word's share of the document.

    Args:
        words: V.
        topics: K.
        hidden: widths of the guide's hidden layers.
        size: of the embeddings.
        embeddings: of the words, (V, E), kept as they are; None learns them.
        length: words of a sampled document.
    Shapes: x (B, V) counts, z (B, K).
    Source: Dieng et al. (2020), arXiv:1907.04907.
    Example:
        >>> ETM(words=30, topics=4, size=5).topics.shape
        torch.Size([4, 30])
    """

    def __init__(
        self,
        words: int,
        topics: int = 50,
        hidden: Sequence[int] = (800, 800),
        size: int = 300,
        embeddings: Tensor | None = None,
        length: int = 100,
    ) -> None:
        super().__init__(
            prior=StandardNormal(topics),
            decoder=TopicEmbeddings(topics, words, size, embeddings),
            encoder=BagEncoder(words, topics, hidden, nn.ReLU, shares=True),
            words=words,
            length=length,
        )
