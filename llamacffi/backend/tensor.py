"""Tensors of a compute graph, as a callback sees them while the graph runs."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

from .._core.callbacks import Bridge, trampoline
from .._core.ownership import Pointer
from .._core.text import c_text
from .._native import ffi, lib
from ..errors import ClosedError, ContextError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    import numpy.typing as npt

    from .._generated.enums import GgmlOp, GgmlType

    Answer: TypeAlias = bool | None


class TensorView(Pointer):
    """One tensor of a graph that is running.

    It belongs to llama.cpp, and is valid only until the callback that got it returns.  A node is
    called by the name that the model's graph gives it, such as ``"attn_out-3"`` in layer 3.
    """

    _why = "it is llama.cpp's, and only as long as the callback runs"
    _instead = "to_numpy() returns a copy of its data"

    __slots__ = ("_call", "_ptr")

    def __init__(self, ptr: Any, call: Call) -> None:
        self._ptr = ptr
        self._call = call

    def __repr__(self) -> str:
        if self._call.over:
            return "<TensorView, no longer valid>"
        return f"<TensorView {self.name!r}: {self.op.name} {self.type.name} {self.shape}>"

    @property
    def ptr(self) -> Any:
        """The ``struct ggml_tensor *``.

        Raises:
            ClosedError: The callback that got this view has returned.
        """
        if self._call.over:
            raise ClosedError("a TensorView is valid only inside the callback that gets it")
        return self._ptr

    @property
    def name(self) -> str:
        """What the graph calls it."""
        return c_text(self.ptr.name)

    @property
    def op(self) -> GgmlOp:
        """The operation that computes it; ``NONE`` for weights and inputs."""
        from .._generated.enums import GgmlOp

        return GgmlOp(self.ptr.op)

    @property
    def type(self) -> GgmlType:
        """What its elements are."""
        from .._generated.enums import GgmlType

        return GgmlType(self.ptr.type)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape as numpy has it: the innermost dimension is last, outer ones of 1 left out."""
        ptr = self.ptr
        return tuple(ptr.ne[i] for i in reversed(range(lib.ggml_n_dims(ptr))))

    @property
    def nbytes(self) -> int:
        """How many bytes it spans in its buffer.  Source: ``ggml_nbytes``."""
        return int(lib.ggml_nbytes(self.ptr))

    @property
    def sources(self) -> tuple[TensorView | None, ...]:
        """The tensors that it is computed from; None for one that the operation does without.

        The data of one may be overwritten by the result, where the operation works in place.
        """
        found = [ptr or None for ptr in self.ptr.src]
        while found and found[-1] is None:
            found.pop()
        return tuple(None if ptr is None else TensorView(ptr, self._call) for ptr in found)

    def to_numpy(self) -> npt.NDArray[Any]:
        """Copy its data, from the memory of whatever device it is on.

        Returns:
            An array of `shape`, the caller's own: of the type that numpy has for the elements;
            float32 for bfloat16 and for types of blocks, such as Q4_0.

        Raises:
            ClosedError: The callback that got this view has returned.
            ContextError: The tensor is not computed yet: the callback must ask for it first.
            UnsupportedError: The data lie in a buffer that cannot be read, as weights that were
                repacked for the CPU.

        Source: ``ggml_backend_tensor_get``.
        """
        import numpy as np

        from ..gguf.types import DTYPES, dequantize_array

        ptr = self.ptr
        if not self._call.computed:
            raise ContextError(
                f"{self.name!r} is not computed yet: return True to be called again when it is"
            )
        _check_readable(self)
        raw = np.empty(lib.ggml_nbytes(ptr), np.uint8)
        if raw.size:
            lib.ggml_backend_tensor_get(ptr, ffi.from_buffer(raw), 0, raw.size)
        dtype = DTYPES.get(self.type)
        sizes, strides = list(ptr.ne), list(ptr.nb)
        if dtype is None:  # an element of a row is a byte of its blocks
            dtype = np.dtype(np.uint8)
            sizes[0] = lib.ggml_row_size(ptr.type, sizes[0])
            strides[0] = 1
        # The reverse: ggml counts from the innermost.  The rows may be apart, or permuted.
        array: npt.NDArray[Any] = np.ndarray(sizes[::-1], dtype, raw, 0, strides[::-1])
        array = np.ascontiguousarray(array)
        if self.type.name == "BF16" or dtype == np.uint8:
            array = dequantize_array(array, self.type)
        return array.reshape(self.shape)


class Call:
    """The call of a callback: what it is for, and whether it is over."""

    __slots__ = ("computed", "over")

    def __init__(self, computed: bool) -> None:
        self.computed: bool = computed
        self.over: bool = False


class Observer:
    """A user's callback on the graphs of a context: ``Context(..., cb_eval=callback)``."""

    __slots__ = (
        *("__weakref__", "_bridge", "_function", "_memory", "_now", "_stop_graph", "_stopped"),
        *("before", "handle", "torn"),
    )

    torn: bool
    """Whether that micro-batch was stopped, and not just finished."""

    before: dict[int, int]
    """Where each sequence of the batch ended before the micro-batch that is being computed."""

    handle: Any
    """The ``user_data`` of the callback in C, to be kept as long as the context."""

    def __init__(self, function: Callable[[TensorView, bool], Answer], abort: Any) -> None:
        """Observe with ``function``; ``abort`` is the flag that stops the context's graphs."""
        self._function = function
        self._stopped = False
        self._memory: Any = ffi.NULL
        self.before = self._now = dict[int, int]()
        self.torn = False
        # The handle lives as long as the C object, whose finalizer is kept by a global list.  It
        # must not hold the user's function, which may well hold the context.
        self._stop_graph = functools.partial(lib.llamacffi_abort_set, abort, True)
        self._bridge = Bridge(Weakly(self), self._stop_graph)
        self.handle = ffi.new_handle(self._bridge)

    def __call__(self, ptr: Any, ask: bool) -> bool:
        """Let the user's function see one node; called by C."""
        if self._stopped:
            return self.go_on(ask)
        if self._memory != ffi.NULL and ask:
            self._look()
        call = Call(computed=not ask)
        try:
            answer = self._function(TensorView(ptr, call), ask)
        finally:
            call.over = True
        if ask:
            return bool(answer)
        if answer is not None and not answer:
            self._stopped = True
            self._stop_graph()
        # Even if the user wants to stop: False ends only the part of the graph that one backend
        # computes, and C takes what is missing for computed.  The flag stops the processor cleanly;
        # on other devices the micro-batch is taken back when it is done.
        return True

    def go_on(self, ask: bool) -> bool:
        """Let a device that cannot be stopped compute the rest at once; return the answer."""
        # Is this the rest of what was stopped, or the next micro-batch?
        if not self.torn and self._memory != ffi.NULL:
            self.torn = self._ends(self._now) == self._now
        return not ask

    def begin(self, context: Any, seq_ids: Iterable[int]) -> None:
        """Get ready for a computation of these sequences; the context is held."""
        self._memory, self.torn = lib.llama_get_memory(context), False
        if self._memory != ffi.NULL:
            self.before = self._now = self._ends(seq_ids)

    def _look(self) -> None:
        """Find out whether another micro-batch has begun: then it is in memory already."""
        now = self._ends(self._now)
        if now != self._now:
            # The first one that is seen, or the next.
            self.before, self._now = self._now, now

    def _ends(self, seq_ids: Iterable[int]) -> dict[int, int]:
        memory = self._memory
        return {seq_id: lib.llama_memory_seq_pos_max(memory, seq_id) for seq_id in seq_ids}

    def finish(self) -> tuple[bool, BaseException | None]:
        """Return whether the callback has stopped the graph, and what it has raised; forget it."""
        stopped, error = self._stopped, self._bridge.error
        self._stopped, self._bridge.error = False, None
        return stopped or error is not None, error


class Weakly:
    """Calls an observer as long as there is one."""

    __slots__ = ("_observer",)

    def __init__(self, observer: Observer) -> None:
        self._observer = weakref.ref(observer)

    def __call__(self, ptr: Any, ask: bool) -> bool:
        """Let it see one node; without one, ask for none."""
        observer = self._observer()
        return not ask if observer is None else observer(ptr, ask)

    def go_on(self, ask: bool) -> bool:
        """Let it do so."""
        observer = self._observer()
        return not ask if observer is None else observer.go_on(ask)


@trampoline(
    stop=True, over=lambda _tensor, ask, handle: ffi.from_handle(handle).function.go_on(ask)
)
def llamacffi_on_eval(observer: Callable[[Any, bool], bool], ptr: Any, ask: bool) -> bool:
    """Show a node to the user's function."""
    return observer(ptr, ask)


def _check_readable(tensor: TensorView) -> None:
    """Raise UnsupportedError where llama.cpp would call a function that the buffer lacks."""
    ptr = tensor.ptr
    buffer = (ptr.view_src or ptr).buffer
    if buffer == ffi.NULL:
        raise UnsupportedError(f"{tensor.name!r} has no buffer that could be read")
    kind = lib.ggml_backend_buffer_get_type(buffer)
    device = lib.ggml_backend_buft_get_device(kind)
    on_cpu = (
        device == ffi.NULL or lib.ggml_backend_dev_type(device) == lib.GGML_BACKEND_DEVICE_TYPE_CPU
    )
    if on_cpu and not lib.ggml_backend_buft_is_host(kind):
        name = c_text(lib.ggml_backend_buft_name(kind))
        raise UnsupportedError(
            f"{tensor.name!r} was repacked for the CPU ({name}) and cannot be read: load the "
            "model with use_extra_bufts=False"
        )
