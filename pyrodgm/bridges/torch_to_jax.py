"""A torch function as a jax function: its traced graph, operation by operation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    raise ImportError('this bridge needs jax: pip install "pyrodgm[jax]"') from error

__all__ = ["to_jax"]


def to_jax(function: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Any], Any]:
    """The jax function that computes what a torch function computes of a tensor like ``example``.

    Its parameters become constants, as they are now; ``jax.grad``, ``jit`` and ``vmap`` work on it. The function is
    traced once, so branches on values are taken as the example takes them.

    Args:
        function: of one tensor, made of the operations that nets, flows and autoregressive models use.
        example: of the shape and dtype that the jax function will be called with.
    Raises: NotImplementedError that names an operation without a translation; ImportError without jax.
    Source: the graph is ATen's, https://docs.pytorch.org/docs/stable/torch.compiler_ir.html.
    Example:
        >>> f = to_jax(lambda x: x.square().sum(-1).log(), torch.ones(3))
        >>> round(float(f(2 * torch.ones(3).numpy())), 4)
        2.4849
    """
    with torch.no_grad():
        graph = make_fx(torch.func.functionalize(function, remove="mutations"))(example)
    nodes = list(graph.graph.nodes)
    constants = {
        n.name: operator.attrgetter(n.target)(graph).detach().cpu().numpy() for n in nodes if n.op == "get_attr"
    }
    unknown = sorted({str(n.target) for n in nodes if n.op == "call_function" and _rule(n.target) is None})
    if unknown:
        raise NotImplementedError(f"expected operations with a translation to jax, got {', '.join(unknown)}")

    def translated(x: Any) -> Any:
        values: dict[Any, Any] = {}

        def fill(argument: Any) -> Any:
            return torch.fx.node.map_arg(argument, lambda n: values[n])

        for node in nodes:
            if node.op == "placeholder":
                values[node] = jnp.asarray(x)
            elif node.op == "get_attr":
                values[node] = jnp.asarray(constants[node.name])
            elif node.op == "output":
                return fill(node.args[0])
            else:
                rule: Any = _rule(node.target)
                values[node] = rule(*fill(node.args), **fill(node.kwargs))
        raise ValueError("expected a graph with an output, got none")

    return translated


def _rule(target: Any) -> Callable[..., Any] | None:
    if target is operator.getitem:
        return operator.getitem
    return _RULES.get(str(target).removeprefix("aten."))


def _dims(dim: Any) -> Any:
    return None if dim is None or dim == [] else dim if isinstance(dim, int) else tuple(dim)


def _dtype(dtype: torch.dtype) -> Any:
    return jax.dtypes.canonicalize_dtype(torch.empty(0, dtype=dtype).numpy().dtype)


def _add(a: Any, b: Any, *, alpha: float = 1) -> Any:
    return a + (b if alpha == 1 else alpha * b)


def _sub(a: Any, b: Any, *, alpha: float = 1) -> Any:
    return a - (b if alpha == 1 else alpha * b)


def _addmm(bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return beta * bias + alpha * (a @ b)


def _sum(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return x.sum(_dims(dim), keepdims=keepdim, dtype=None if dtype is None else _dtype(dtype))


def _mean(x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    return x.mean(_dims(dim), keepdims=keepdim, dtype=None if dtype is None else _dtype(dtype))


def _slice(x: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    return x[(slice(None),) * (dim % x.ndim) + (slice(start, end, step),)]


def _split(x: Any, sizes: list[int], dim: int = 0) -> Any:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    return jnp.split(x, ends, dim)


def _expand(x: Any, size: list[int], *, implicit: bool = False) -> Any:
    lead = len(size) - x.ndim
    return jnp.broadcast_to(x, [x.shape[i - lead] if s == -1 else s for i, s in enumerate(size)])


def _pad(x: Any, pad: list[int], value: float = 0) -> Any:
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)]  # the last dimension comes first
    return jnp.pad(x, [(0, 0)] * (x.ndim - len(pairs)) + pairs[::-1], constant_values=value)


def _softplus(x: Any, beta: float = 1, threshold: float = 20) -> Any:
    return jax.nn.softplus(beta * x) / beta


def _bce(x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = 1) -> Any:
    if weight is not None or pos_weight is not None:
        raise NotImplementedError("expected binary_cross_entropy_with_logits without weights, got some")
    loss = jax.nn.softplus(x) - x * target
    return (loss, loss.mean(), loss.sum())[reduction] if reduction else loss


def _squeeze(x: Any, dim: Any = None) -> Any:
    dims = range(x.ndim) if dim is None else [dim] if isinstance(dim, int) else dim
    return x.squeeze(tuple(d for d in dims if x.shape[d] == 1))


def _permute(x: Any, dims: list[int]) -> Any:
    return x.transpose(dims)


def _index(x: Any, indices: list[Any]) -> Any:
    return x[tuple(slice(None) if i is None else i for i in indices)]


def _clamp(x: Any, low: Any = None, high: Any = None) -> Any:
    return jnp.clip(x, low, high)


def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


def _cast(x: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return x if dtype is None else x.astype(_dtype(dtype))


def _scalar(value: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return jnp.asarray(value, None if dtype is None else _dtype(dtype))


def _full(size: list[int], value: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Any:
    return jnp.full(size, value, None if dtype is None else _dtype(dtype))


def _filled(value: float) -> Callable[..., Any]:
    def fill(size: list[int], *, dtype: torch.dtype | None = None, **_: Any) -> Any:
        return _full(size, value, dtype=dtype or torch.get_default_dtype())

    return fill


def _like(value: float) -> Callable[..., Any]:
    return lambda x, **_: jnp.full_like(x, value)


def _arange(*ends: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
    values = jnp.arange(*ends)
    return values if dtype is None else values.astype(_dtype(dtype))


def _logsumexp(x: Any, dim: Any, keepdim: bool = False) -> Any:
    return jax.scipy.special.logsumexp(x, _dims(dim), keepdims=keepdim)


_RULES: dict[str, Callable[..., Any]] = {
    "abs.default": jnp.abs,
    "add.Scalar": _add,
    "add.Tensor": _add,
    "addcmul.default": lambda x, a, b, *, value=1: x + value * a * b,
    "addmm.default": _addmm,
    "alias.default": _same,
    "amax.default": lambda x, dim=(), keepdim=False: jnp.max(x, axis=tuple(dim) or None, keepdims=keepdim),
    "arange.default": _arange,
    "arange.start": _arange,
    "binary_cross_entropy_with_logits.default": _bce,
    "bitwise_and.Tensor": operator.and_,
    "bitwise_not.default": operator.invert,
    "bitwise_or.Tensor": operator.or_,
    "bmm.default": operator.matmul,
    "cat.default": lambda xs, dim=0: jnp.concatenate(xs, dim),
    "clamp.default": _clamp,
    "clamp_max.default": lambda x, high: jnp.minimum(x, high),
    "clamp_min.default": lambda x, low: jnp.maximum(x, low),
    "clone.default": _same,
    "constant_pad_nd.default": _pad,
    "copy.default": lambda x, new, *_: jnp.broadcast_to(new, x.shape).astype(x.dtype),
    "cos.default": jnp.cos,
    "cumsum.default": lambda x, dim, *, dtype=None: jnp.cumsum(x, dim),
    "detach.default": jax.lax.stop_gradient,
    "div.Scalar": operator.truediv,
    "div.Tensor": operator.truediv,
    "elu.default": lambda x, alpha=1.0: jax.nn.elu(x, alpha),
    "empty_like.default": _like(0.0),
    "eq.Scalar": operator.eq,
    "eq.Tensor": operator.eq,
    "exp.default": jnp.exp,
    "expand.default": _expand,
    "expm1.default": jnp.expm1,
    "fill.Scalar": jnp.full_like,
    "flip.default": jnp.flip,
    "full.default": _full,
    "full_like.default": lambda x, value, **_: jnp.full_like(x, value),
    "gather.default": lambda x, dim, index: jnp.take_along_axis(x, index, dim),
    "ge.Scalar": operator.ge,
    "ge.Tensor": operator.ge,
    "gt.Scalar": operator.gt,
    "gt.Tensor": operator.gt,
    "index.Tensor": _index,
    "index_select.default": lambda x, dim, index: jnp.take(x, index, dim),
    "le.Scalar": operator.le,
    "le.Tensor": operator.le,
    "leaky_relu.default": lambda x, slope=0.01: jax.nn.leaky_relu(x, slope),
    "lerp.Scalar": lambda x, end, weight: x + weight * (end - x),
    "lift_fresh_copy.default": _same,
    "log.default": jnp.log,
    "log1p.default": jnp.log1p,
    "log_sigmoid_forward.default": lambda x: (jax.nn.log_sigmoid(x), None),
    "logical_and.default": jnp.logical_and,
    "logical_not.default": jnp.logical_not,
    "logical_or.default": jnp.logical_or,
    "logsumexp.default": _logsumexp,
    "lt.Scalar": operator.lt,
    "lt.Tensor": operator.lt,
    "masked_fill.Scalar": lambda x, mask, value: jnp.where(mask, value, x),
    "maximum.default": jnp.maximum,
    "mean.dim": _mean,
    "minimum.default": jnp.minimum,
    "mm.default": operator.matmul,
    "mul.Scalar": operator.mul,
    "mul.Tensor": operator.mul,
    "ne.Scalar": operator.ne,
    "nan_to_num.default": lambda x, nan=0.0, posinf=None, neginf=None: jnp.nan_to_num(
        x, nan=nan or 0.0, posinf=posinf, neginf=neginf
    ),
    "neg.default": operator.neg,
    "new_full.default": lambda x, size, value, *, dtype=None, **_: jnp.full(
        size, value, x.dtype if dtype is None else _dtype(dtype)
    ),
    "ones.default": _filled(1.0),
    "ones_like.default": _like(1.0),
    "permute.default": _permute,
    "pow.Tensor_Scalar": operator.pow,
    "pow.Tensor_Tensor": operator.pow,
    "prod.dim_int": lambda x, dim, keepdim=False: x.prod(dim, keepdims=keepdim),
    "reciprocal.default": lambda x: 1 / x,
    "relu.default": jax.nn.relu,
    "reshape.default": jnp.reshape,
    "rsqrt.default": jax.lax.rsqrt,
    "rsub.Scalar": lambda x, other, alpha=1: other - alpha * x,
    "scalar_tensor.default": _scalar,
    "select.int": lambda x, dim, index: jnp.take(x, index, dim),
    "select_scatter.default": lambda x, part, dim, index: x.at[(slice(None),) * (dim % x.ndim) + (index,)].set(part),
    "sigmoid.default": jax.nn.sigmoid,
    "silu.default": jax.nn.silu,
    "sign.default": jnp.sign,
    "sin.default": jnp.sin,
    "slice.Tensor": _slice,
    "softplus.default": _softplus,
    "split.Tensor": lambda x, size, dim=0: jnp.split(x, list(range(size, x.shape[dim], size)), dim),
    "split_with_sizes.default": _split,
    "sqrt.default": jnp.sqrt,
    "square.default": jnp.square,
    "squeeze.default": _squeeze,
    "squeeze.dim": _squeeze,
    "squeeze.dims": _squeeze,
    "stack.default": lambda xs, dim=0: jnp.stack(xs, dim),
    "sub.Scalar": _sub,
    "sub.Tensor": _sub,
    "sum.default": _sum,
    "sum.dim_IntList": _sum,
    "t.default": jnp.transpose,
    "tanh.default": jnp.tanh,
    "transpose.int": jnp.swapaxes,
    "unbind.int": lambda x, dim=0: [jnp.take(x, i, dim) for i in range(x.shape[dim])],
    "unsqueeze.default": jnp.expand_dims,
    "view.default": jnp.reshape,
    "where.self": jnp.where,
    "zeros.default": _filled(0.0),
    "zeros_like.default": _like(0.0),
    "_log_softmax.default": lambda x, dim, half: jax.nn.log_softmax(x, dim),
    "_softmax.default": lambda x, dim, half: jax.nn.softmax(x, dim),
    "_to_copy.default": _cast,
    "_unsafe_view.default": jnp.reshape,
}
