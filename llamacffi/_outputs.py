"""What a context has computed: scores of the tokens to come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._context import ContextBase
from ._ffi import ffi, lib
from ._views import float_view
from .errors import ArgumentError, ContextError
from .log import with_log

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Outputs(ContextBase):
    """The part of a `Context` that reads the outputs of the last batch."""

    __slots__ = ()

    def logits(
        self, i: int = -1, *, out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the scores of every token to come after one token of the last batch.

        Args:
            i: Index into the batch decoded last, in tokens; -1 is the last output.
            out: Array to fill, float32, C-contiguous, shape ``[n_vocab]``.  New if omitted.

        Returns:
            ``[n_vocab]`` float32, log-odds, not normalised.  The caller's own copy: later calls do
            not change it.  See `logits_view` to avoid the copy.

        Raises:
            IndexError: Token ``i`` was added without an output.
            ArgumentError: ``out`` does not fit.

        Source: ``llama_get_logits_ith``.
        """
        import numpy as np

        n_vocab = len(self._vocab)
        if out is None:
            out = np.empty(n_vocab, np.float32)
        elif out.shape != (n_vocab,) or out.dtype != np.float32 or not out.flags.carray:
            raise ArgumentError(
                f"out must be a writeable, contiguous float32 array of shape ({n_vocab},), "
                f"not {out.dtype} of shape {out.shape}"
            )
        with self.exclusive:
            ptr = self.ptr
            ffi.memmove(ffi.from_buffer(out), self._logits_ptr(ptr, i), out.nbytes)
        return out

    def logits_view(self, i: int = -1) -> npt.NDArray[np.float32]:
        """Return the scores of `logits` without a copy, as a read-only array.

        While it is alive, `decode` raises BufferError, since llama.cpp may move the memory.
        """
        with self.exclusive:
            ptr = self.ptr
            n_vocab = len(self._vocab)
            return float_view(self._logits_ptr(ptr, i), (n_vocab,), ptr, self._exports)

    def check_output(self, i: int) -> None:
        """Raise IndexError unless the last batch has an output at index ``i``."""
        outputs = self._outputs
        if outputs is None:
            raise IndexError("there are no outputs: decode a batch first")
        if not (outputs.count(1) >= -i if i < 0 else outputs[i : i + 1] == b"\1"):
            raise IndexError(
                f"no output at index {i}: the last batch had {len(outputs)} tokens, of which "
                f"{[j for j, output in enumerate(outputs) if output]} have outputs"
            )

    def _logits_ptr(self, ptr: Any, i: int) -> Any:
        self.check_output(i)
        # Through the getter each time: the first one after a decode puts the rows in order.
        pointer = lib.llama_get_logits_ith(ptr, i)
        if pointer == ffi.NULL:
            raise with_log(ContextError(f"llama.cpp has no logits for output {i}"))
        return pointer
