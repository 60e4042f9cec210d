"""Networks between bags of words and topics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyrodgm.nets.mlp import MLP

__all__ = ["BagEncoder", "LogLinear", "ProductOfTopics", "RowNorm", "TopicEmbeddings"]


class RowNorm(nn.BatchNorm1d):
    """Batch norm over all leading dimensions, with an offset and no scale; a lone row takes the running statistics.

    Args:
        num_features: D.
    Shapes: (*B, D) -> (*B, D).
    Example:
        >>> RowNorm(3)(torch.randn(4, 5, 3)).shape
        torch.Size([4, 5, 3])
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-3, momentum=0.1, affine=False)
        self.offset = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if self.training and len(flat) > 1:
            return (super().forward(flat) + self.offset).reshape(x.shape)
        return F.batch_norm(flat, self.running_mean, self.running_var, bias=self.offset, eps=self.eps).reshape(x.shape)


class BagEncoder(nn.Module):
    """Counts of words to the mean and log-scale of a Gaussian over topics.

    Args:
        words: V.
        topics: K.
        hidden: widths of the hidden layers.
        activation: makes one activation module.
        dropout: of the last hidden layer.
        norm: batch norm of the outputs; without it they have a bias.
        shares: read each word's share of the document instead of its count.
    Shapes: (*B, V) -> (*B, 2 K), the means, then the log-scales.
    Raises: ValueError without a hidden layer.
    Source: Srivastava and Sutton (2017), arXiv:1703.01488, section 3.
    Example:
        >>> BagEncoder(10, 3)(torch.ones(2, 10)).shape
        torch.Size([2, 6])
    """

    def __init__(
        self,
        words: int,
        topics: int,
        hidden: Sequence[int] = (100, 100),
        activation: Callable[[], nn.Module] = nn.Softplus,
        dropout: float = 0.0,
        norm: bool = False,
        shares: bool = False,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("expected at least one hidden layer, got none")
        width = hidden[-1]
        self.body = nn.Sequential(MLP(words, width, hidden[:-1], activation), activation(), nn.Dropout(dropout))
        self.mean, self.log_variance = (nn.Linear(width, topics, bias=not norm) for _ in range(2))
        self.norms = nn.ModuleList(RowNorm(topics) for _ in range(2)) if norm else None
        self.shares = shares

    def forward(self, x: Tensor) -> Tensor:
        if self.shares:
            x = x / x.sum(-1, keepdim=True).clamp(min=1)
        h = self.body(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        if self.norms is not None:
            mean, log_variance = self.norms[0](mean), self.norms[1](log_variance)
        return torch.cat((mean, 0.5 * log_variance), -1)


class ProductOfTopics(nn.Module):
    r"""Topics as experts, with batch norm of the logits.

    .. math:: \log p(w) = \log \operatorname{softmax} \mathrm{BN}(\beta^T \operatorname{softmax}(z))

    Args:
        topics: K.
        words: V.
        dropout: of the topic proportions.
    Shapes: z (*B, K) -> log-probabilities (*B, V).
    Source: Srivastava and Sutton (2017), arXiv:1703.01488, section 4.
    Example:
        >>> ProductOfTopics(topics=3, words=10)(torch.zeros(5, 3)).exp().sum(-1).allclose(torch.ones(5))
        True
    """

    def __init__(self, topics: int, words: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.weights = nn.Linear(topics, words, bias=False)
        nn.init.xavier_uniform_(self.weights.weight)
        self.dropout, self.norm = nn.Dropout(dropout), RowNorm(words)

    @property
    def topics(self) -> Tensor:
        """The experts' log-weights of words after the norm, (K, V); its offset, common to all topics, is left out."""
        running = self.norm.running_mean, self.norm.running_var
        return F.batch_norm(self.weights.weight.T, *running, eps=self.norm.eps)

    def forward(self, z: Tensor) -> Tensor:
        logits = self.norm(self.weights(self.dropout(z.softmax(-1))))
        return F.log_softmax(logits.to(z.dtype), -1)  # as z has it, whatever autocast makes of the product


class LogLinear(nn.Module):
    r""":math:`\log p(w) = \log\operatorname{softmax}(R z + b)`.

    Args:
        topics: K.
        words: V.
    Shapes: z (*B, K) -> log-probabilities (*B, V).
    Source: Miao et al. (2016), arXiv:1511.06038, eq. 6.
    Example:
        >>> LogLinear(topics=3, words=10)(torch.zeros(5, 3)).exp().sum(-1).allclose(torch.ones(5))
        True
    """

    def __init__(self, topics: int, words: int) -> None:
        super().__init__()
        self.weights = nn.Linear(topics, words)

    @property
    def topics(self) -> Tensor:
        """The log-weights of words in each direction of z, (K, V)."""
        return self.weights.weight.T

    def forward(self, z: Tensor) -> Tensor:
        return F.log_softmax(self.weights(z).to(z.dtype), -1)


class TopicEmbeddings(nn.Module):
    r"""Topics and words in one space: :math:`p(w) = \sum_k \theta_k \operatorname{softmax}(\rho\, \alpha_k)_w`.

    Args:
        topics: K.
        words: V.
        size: of the space, where no embeddings are given.
        embeddings: of the words, :math:`\rho` (V, E), kept as they are, in torch's default dtype; None learns them.
    Shapes: z (*B, K), :math:`\theta = \operatorname{softmax}(z)` -> log-probabilities (*B, V).
    Raises: ValueError for embeddings that are not one row a word.
    Source: Dieng et al. (2020), arXiv:1907.04907, eq. 2-5.
    Example:
        >>> TopicEmbeddings(topics=3, words=10, size=4)(torch.zeros(5, 3)).exp().sum(-1).allclose(torch.ones(5))
        True
    """

    def __init__(self, topics: int, words: int, size: int = 300, embeddings: Tensor | None = None) -> None:
        super().__init__()
        if embeddings is not None and (embeddings.dim() != 2 or len(embeddings) != words):
            raise ValueError(f"expected embeddings of shape ({words}, E), got {tuple(embeddings.shape)}")
        size = size if embeddings is None else embeddings.shape[-1]
        if embeddings is None:
            self.rho = nn.Parameter(torch.randn(words, size))
        else:
            self.register_buffer("rho", embeddings.to(torch.get_default_dtype(), copy=True))
        self.alpha = nn.Linear(size, topics, bias=False)

    @property
    def topics(self) -> Tensor:
        """The topics' log-probabilities of words, (K, V)."""
        return F.log_softmax(self.alpha(self.rho).T.to(self.rho.dtype), -1)

    def forward(self, z: Tensor) -> Tensor:
        probs = (z.softmax(-1) @ self.topics.exp()).to(z.dtype)
        # a word that no topic has would make the loss infinite
        return probs.clamp(min=torch.finfo(probs.dtype).tiny).log()
