"""A second device in software, for machines without a GPU: it computes on the CPU and has CUDA's manners.

Inside ``with PretendDevice() as device:`` tensors made on (or moved to) ``torch.device("pretend")`` hold true
numbers, so that programs whose control reads them run as well. Like CUDA's they refuse to meet tensors of the CPU
(but for scalars) and generators of the CPU, and what makes the host wait there is written down in ``device.waits``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _DummyDeviceGuard, _DummyPrivateUse1Hook

NAME = "pretend"
aten: Any = torch.ops.aten

# Operations after which CUDA's host waits for the device, as torch.cuda.set_sync_debug_mode reports them.
_WAITING = {
    aten._local_scalar_dense.default,  # item, bool, float, int, tolist
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten._linalg_check_errors.default,  # cholesky, solve, inverse: whether it went well
    aten._linalg_eigh.default,
    aten._linalg_svd.default,
    aten.linalg_eig.default,
    aten.linalg_lstsq.default,
    aten.normal.Tensor_Tensor,  # asks whether the scales are positive
    aten.normal.float_Tensor,
}
_COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor}
_GENERATOR = torch.Generator
_active = [False]
_generators: WeakValueDictionary[int, Any] = WeakValueDictionary()  # of the device, by the address of their state


class _Module(_DummyBackendModule):
    def is_available(self) -> bool:
        return _active[0]

    def device_count(self) -> int:
        return int(_active[0])

    def get_rng_state(self, device: Any = None) -> Tensor:  # its noise is the CPU's
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return _active[0]

    def has_primary_context(self, dev_id: int) -> bool:
        return _active[0]


def _register() -> None:
    """Tell torch of the device, once in a process; nothing else notices it while no block is open."""
    if NAME in sys.modules or hasattr(torch, NAME):
        return
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _Module())
    _register.kept = (_Hook(), _DummyDeviceGuard())  # type: ignore[attr-defined]  # torch holds no reference
    torch._C._acc.register_python_privateuseone_hook(_register.kept[0])  # type: ignore[attr-defined]
    torch._C._acc.register_python_privateuseone_device_guard(_register.kept[1])  # type: ignore[attr-defined]


class _Generator(torch.Generator):
    """A generator of the CPU that says which device it was made for."""

    _where: torch.device

    def __new__(cls, device: Any = "cpu") -> _Generator:
        where = torch.device(device)
        self = super().__new__(cls, "cpu" if where.type == NAME else where)
        self._where = torch.device(NAME, 0) if where.type == NAME else where
        if where.type == NAME:
            _generators[self._cdata] = self  # type: ignore[attr-defined]
        return self

    def __init__(self, device: Any = "cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._where


class Wait(NamedTuple):
    """The host waited for the device: in which operation, and the files that were in it, the innermost first."""

    operation: str
    files: tuple[str, ...]


class PretendTensor(Tensor):
    """A tensor that lies on the pretended device; ``held`` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        self.held = held
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({self.held})"

    def tolist(self) -> Any:  # torch's own refuses every subclass
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} met a tensor of a block of PretendDevice that has ended")


class PretendDevice(TorchDispatchMode):
    """The block in which the device exists.

    Attributes:
        waits: where the host has waited for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def __enter__(self) -> PretendDevice:
        _register()
        _active[0] = True
        self._patch = mock.patch.object(torch, "Generator", _Generator)
        self._patch.start()
        # torch.tensor(list, device=...) shall come here as a copy from the CPU; one thread keeps this mode in backward
        self._lift = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self._threads = torch.autograd.set_multithreading_enabled(False)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._threads.__exit__(None, None, None)
        torch._C._set_only_lift_cpu_tensors(self._lift)
        self._patch.stop()
        _active[0] = False

    @contextmanager
    def watching(self) -> Iterator[list[Wait]]:
        """What is written down inside the block alone."""
        kept, self.waits = self.waits, []
        try:
            yield self.waits
        finally:
            self.waits = kept + self.waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        met = _Met()
        kwargs = dict(kwargs or {})
        plain_args, plain_kwargs = met.held(args), met.held(kwargs)
        asked = kwargs.get("device")
        goal = None if asked is None else torch.device(asked).type == NAME
        here = bool(met.owners) if goal is None else goal
        if func in _COPIES:
            self._check_copy(func, args, met, here)
        elif met.owners:
            _check_devices(func, args, met)
            self._check_waits(func, plain_args, args)
        for generator in met.generators:
            if (generator._cdata in _generators) != here:  # type: ignore[attr-defined]
                raise RuntimeError(f"{func}: expected a generator of the device that the result is to be on")
        if goal is not None:
            plain_kwargs["device"] = torch.device("cpu") if goal else torch.device(asked)
            plain_kwargs.pop("pin_memory", None)
        if func in _COPIES and func is not aten._to_copy.default:
            here = isinstance(args[0], PretendTensor)
        out = _FUSED.get(func, func)(*plain_args, **plain_kwargs)
        if _manners(func).reshapes and isinstance(args[0], PretendTensor):
            with no_dispatch():  # transpose_ and the like: the outer tensor's shape changes too
                func(*args, **kwargs)
        return met.owned(out) if here else out

    def _check_copy(self, func: Any, args: Any, met: _Met, here: bool) -> None:
        source = args[0] if func is aten._to_copy.default else args[1]
        target = here if func is aten._to_copy.default else isinstance(args[0], PretendTensor)
        if isinstance(source, PretendTensor) != target:
            self._wait(func)

    def _check_waits(self, func: Any, plain_args: Any, args: Any) -> None:
        if func in _WAITING:
            self._wait(func)
        elif func is aten.multinomial.default:
            if plain_args[1] == 1 or not (len(plain_args) > 2 and plain_args[2]):
                self._wait(func)
        elif func is aten.repeat_interleave.Tensor:
            self._wait(func)
        elif func in _INDEXED:
            # a mask is searched for its places, an index of the CPU is copied; one value under a mask is filled in
            filled = func is not aten.index.Tensor and len(args) > 2 and args[2].numel() == 1
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            apart = [i for i in args[1] if i is not None and not isinstance(i, PretendTensor)]
            if (masks and not filled) or apart:
                self._wait(func)

    def _wait(self, func: Any) -> None:
        files, frame = [], sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_filename != __file__ and "/torch/_" not in frame.f_code.co_filename:
                files.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            frame = frame.f_back  # type: ignore[assignment]
        self.waits.append(Wait(str(func), tuple(files)))


class _Manners(NamedTuple):
    """What one operation is, asked once: its tags are slow to read."""

    elementwise: bool
    reshapes: bool
    writes: bool


@functools.cache
def _manners(func: Any) -> _Manners:
    elementwise = torch.Tag.pointwise in func.tags or func in (aten.masked_fill.Tensor, aten.masked_fill_.Tensor)
    return _Manners(elementwise, torch.Tag.inplace_view in func.tags, func._schema.is_mutable)


def _lstm_cell(
    x: Tensor, h: Tensor, cx: Tensor, b: Tensor | None = None, c: Tensor | None = None
) -> tuple[Tensor, ...]:
    i, f, g, o = (x + h + (0 if b is None or c is None else b + c)).chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat((i, f, g, o), -1)


def _lstm_backward(
    grad_h: Tensor | None, grad_c: Tensor | None, cx: Tensor, cy: Tensor, kept: Tensor, bias: bool
) -> tuple[Tensor | None, ...]:
    i, f, g, o = kept.chunk(4, -1)
    to_h = torch.zeros_like(cy) if grad_h is None else grad_h
    to_c = to_h * o * (1 - cy.tanh() ** 2) + (0 if grad_c is None else grad_c)
    parts = (to_c * g * i * (1 - i), to_c * cx * f * (1 - f), to_c * i * (1 - g**2), to_h * cy.tanh() * o * (1 - o))
    gates = torch.cat(parts, -1)
    return gates, to_c * f, gates.sum(0) if bias else None


def _gru_cell(x: Tensor, h: Tensor, hx: Tensor, b: Tensor | None = None, c: Tensor | None = None) -> tuple[Tensor, ...]:
    (xr, xz, xn), (hr, hz, hn) = (x + (0 if b is None else b)).chunk(3, -1), (h + (0 if c is None else c)).chunk(3, -1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = (xn + r * hn).tanh()
    return n + z * (hx - n), torch.cat((r, z, n, hx, hn), -1)


def _gru_backward(grad: Tensor, kept: Tensor, bias: bool) -> tuple[Tensor | None, ...]:
    r, z, n, hx, hn = kept.chunk(5, -1)
    to_n = grad * (1 - z) * (1 - n**2)
    to_r, to_z = to_n * hn * r * (1 - r), grad * (hx - n) * z * (1 - z)
    x, h = torch.cat((to_r, to_z, to_n), -1), torch.cat((to_r, to_z, to_n * r), -1)
    return x, h, grad * z, x.sum(0) if bias else None, h.sum(0) if bias else None


# Operations that only accelerators have: torch chooses them by the device.
_FUSED = {
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_backward,
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten._thnn_fused_gru_cell_backward.default: _gru_backward,
}


class _Met:
    """The tensors and generators that one operation meets."""

    def __init__(self) -> None:
        self.owners: dict[int, PretendTensor] = {}
        self.apart: list[Tensor] = []
        self.generators: list[torch.Generator] = []

    def held(self, value: Any) -> Any:
        """The arguments as the CPU takes them."""
        if isinstance(value, PretendTensor):
            self.owners[id(value.held)] = value
            return value.held
        if isinstance(value, Tensor):
            self.apart.append(value)
        elif isinstance(value, _GENERATOR):
            self.generators.append(value)
        elif isinstance(value, list | tuple):
            return type(value)([self.held(v) for v in value])
        elif isinstance(value, dict):
            return {k: self.held(v) for k, v in value.items()}
        return value

    def owned(self, value: Any) -> Any:
        """The results as the device hands them out: what was changed in place is the tensor that it was."""
        if isinstance(value, PretendTensor):
            return value
        if isinstance(value, Tensor):
            return self.owners[id(value)] if id(value) in self.owners else PretendTensor(value)
        if isinstance(value, list | tuple):
            return type(value)([self.owned(v) for v in value])
        return value


def _check_devices(func: Any, args: Any, met: _Met) -> None:
    """Tensors of the device beside others: CUDA takes scalars of the CPU in elementwise operations, and indices."""
    if not met.apart:
        return
    written = _manners(func).writes and args and isinstance(args[0], Tensor) and not isinstance(args[0], PretendTensor)
    if func in _INDEXED and isinstance(args[0], PretendTensor):
        bad = [v for v in args[2:3] if isinstance(v, Tensor) and not isinstance(v, PretendTensor) and v.dim()]
    elif _manners(func).elementwise:
        bad = met.apart if written else [t for t in met.apart if t.dim()]
    else:
        bad = met.apart
    if bad:
        shapes = ", ".join(str(tuple(t.shape)) for t in bad)
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu, "
            f"in {func}: of the CPU are those of shape {shapes}"
        )
