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
    """One tensor of a running graph.

    It belongs to llama.cpp and is valid only until the callback that received it returns.  Nodes
    have the names that the graph of the model gives them, such as ``"attn_out-3"`` in layer 3.
    """

    _why = "it belongs to llama.cpp, and exists only while the callback runs"
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
            ClosedError: The callback that received this view has returned.
        """
        if self._call.over:
            raise ClosedError("a TensorView is valid only inside the callback that receives it")
        return self._ptr

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return c_text(self.ptr.name)

    @property
    def op(self) -> GgmlOp:
        """The operation that computes it; ``NONE`` for weights and inputs."""
        from .._generated.enums import GgmlOp

        return GgmlOp(self.ptr.op)

    @property
    def type(self) -> GgmlType:
        """The type of its elements."""
        from .._generated.enums import GgmlType

        return GgmlType(self.ptr.type)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in numpy's order: innermost dimension last, without outer dimensions of 1."""
        ptr = self.ptr
        return tuple(ptr.ne[i] for i in reversed(range(lib.ggml_n_dims(ptr))))

    @property
    def nbytes(self) -> int:
        """The number of bytes that it spans in its buffer.  Source: ``ggml_nbytes``."""
        return int(lib.ggml_nbytes(self.ptr))

    @property
    def sources(self) -> tuple[TensorView | None, ...]:
        """The tensors that it is computed from; None where the operation omits an optional one.

        An operation that works in place overwrites the data of one with its result.
        """
        found = [ptr or None for ptr in self.ptr.src]
        while found and found[-1] is None:
            found.pop()
        return tuple(None if ptr is None else TensorView(ptr, self._call) for ptr in found)

    def to_numpy(self) -> npt.NDArray[Any]:
        """Copy its data from the memory of its device.

        Returns:
            A new array of `shape`, with the corresponding numpy type; float32 for bfloat16 and for
            block types such as Q4_0.

        Raises:
            ClosedError: The callback that received this view has returned.
            ContextError: The tensor is not computed yet: return True from the callback first.
            UnsupportedError: Its buffer cannot be read, for example because the weights were
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
        # Reversed, since ggml's first dimension is the innermost.  Rows may be apart or permuted.
        array: npt.NDArray[Any] = np.ndarray(sizes[::-1], dtype, raw, 0, strides[::-1])
        array = np.ascontiguousarray(array)
        if self.type.name == "BF16" or dtype == np.uint8:
            array = dequantize_array(array, self.type)
        return array.reshape(self.shape)


class Call:
    """One call of the callback: whether the tensor is computed, and whether the call is over."""

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
    """Whether the stopped micro-batch was interrupted before its end."""

    before: dict[int, int]
    """The last position of each sequence of the batch before the micro-batch being computed."""

    handle: Any
    """The ``user_data`` of the callback in C, which must live as long as the context."""

    def __init__(self, function: Callable[[TensorView, bool], Answer], abort: Any) -> None:
        """Call ``function``; ``abort`` is the flag that stops the context's graphs."""
        self._function = function
        self._stopped = False
        self._memory: Any = ffi.NULL
        self.before = self._now = dict[int, int]()
        self.torn = False
        # The handle lives as long as the C object, whose finalizer is in a global list.  So it must
        # not hold the user's function, which may hold the context.
        self._stop_graph = functools.partial(lib.llamacffi_abort_set, abort, True)
        self._bridge = Bridge(WeakObserver(self), self._stop_graph)
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
        # upstream: ggml/src/ggml-backend.cpp callback_eval: False ends only the part of the graph
        # on one backend, and the rest is taken as computed; so this returns True even if the user
        # wants to stop.  The flag stops the CPU cleanly; on other devices the micro-batch is undone
        # when it is done.
        return True

    def go_on(self, ask: bool) -> bool:
        """Let a device that cannot be stopped compute the rest at once; return the answer for C."""
        # Find out whether this is the rest of the stopped micro-batch, or the next one.
        if not self.torn and self._memory != ffi.NULL:
            self.torn = self._ends(self._now) == self._now
        return not ask

    def begin(self, context: Any, seq_ids: Iterable[int]) -> None:
        """Prepare for a computation of these sequences; the caller holds the context."""
        self._memory, self.torn = lib.llama_get_memory(context), False
        if self._memory != ffi.NULL:
            self.before = self._now = self._ends(seq_ids)

    def _look(self) -> None:
        """Notice whether another micro-batch has begun: it is in memory by then."""
        now = self._ends(self._now)
        if now != self._now:
            self.before, self._now = self._now, now

    def _ends(self, seq_ids: Iterable[int]) -> dict[int, int]:
        memory = self._memory
        return {seq_id: lib.llama_memory_seq_pos_max(memory, seq_id) for seq_id in seq_ids}

    def finish(self) -> tuple[bool, BaseException | None]:
        """Return whether the callback stopped the graph, and what it raised; then reset both."""
        stopped, error = self._stopped, self._bridge.error
        self._stopped, self._bridge.error = False, None
        return stopped or error is not None, error


class WeakObserver:
    """Calls an observer as long as it exists, without keeping it alive."""

    __slots__ = ("_observer",)

    def __init__(self, observer: Observer) -> None:
        self._observer = weakref.ref(observer)

    def __call__(self, ptr: Any, ask: bool) -> bool:
        """Show it one node; once it is gone, ask for no nodes."""
        observer = self._observer()
        return not ask if observer is None else observer(ptr, ask)

    def go_on(self, ask: bool) -> bool:
        """See `Observer.go_on`."""
        observer = self._observer()
        return not ask if observer is None else observer.go_on(ask)


@trampoline(
    stop=True, over=lambda _tensor, ask, handle: ffi.from_handle(handle).function.go_on(ask)
)
def llamacffi_on_eval(observer: Callable[[Any, bool], bool], ptr: Any, ask: bool) -> bool:
    """Show a node to the user's function."""
    return observer(ptr, ask)


def _check_readable(tensor: TensorView) -> None:
    """Raise UnsupportedError where C would call a function that the buffer does not have.

    upstream: ggml/src/ggml-cpu/repack.cpp get_tensor: repacked buffers have none.
    """
    ptr = tensor.ptr
    buffer = (ptr.view_src or ptr).buffer
    if buffer == ffi.NULL:
        raise UnsupportedError(f"{tensor.name!r} has no buffer to read from")
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
