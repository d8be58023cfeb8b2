"""What the parts of a `Context` share: its C object, its lock, and what was computed last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core.locks import CallLock
from .._core.ownership import Handle
from .._native import lib
from .compat import n_rs_seq

if TYPE_CHECKING:
    from typing import Any

    from .._core.views import Exports
    from .._generated.enums import PoolingType
    from ..backend.tensor import Observer
    from ..model.model import Model
    from ..vocab.vocab import Vocab
    from .backend_sampling import WeakOutputs
    from .bookkeeping import Bookkeeping
    from .contention import Contention
    from .graph_samplers import GraphSamplers
    from .perf_types import ContextPerf
    from .pools import Computing
    from .reserve import ActiveAdapters
    from .snapshot_room import Mark


class ContextBase(Handle):
    """The attributes of a `Context`, which `Context` itself fills, and its sizes.

    Each part of a context (outputs, state, adapters) is a class over this one in a module of its
    own, without slots, and `Context` is all of them.
    """

    _instead = "make another Context; save_state() and load_state() carry what one remembers"

    __slots__ = (
        "__llama_outputs__",
        "_abort",
        "_active",
        "_bookkeeping",
        "_computing",
        "_contention",
        "_drafts",
        "_embeddings",
        "_encoded",
        "_exports",
        "_feeds_decoder",
        "_graph",
        "_graph_samplers",
        "_has",
        "_has_logits",
        "_memoryless",
        "_n_outputs_max",
        "_n_positions",
        "_observer",
        "_other_context",
        "_outputs",
        "_params",
        "_perf_offset",
        "_sizes",
        "_snapshots",
        "_special",
        "_turning",
        "_vocab",
        "kv_unified",
        "lock",
        "model",
    )

    model: Model
    """The model that it computes with."""
    kv_unified: bool
    """Whether all sequences share one buffer."""
    lock: CallLock
    """Held during each call: a context is for one thread at a time."""
    # What to hold while C computes, one token or several; None after `close`.
    _computing: tuple[Computing, Computing] | None
    _vocab: Vocab
    _exports: Exports
    _bookkeeping: Bookkeeping
    # Whether it reads embeddings beside tokens: a draft model's, from the state of its target.
    _drafts: bool
    # Which tokens of the last batch have an output, a byte each; None before the first batch.
    _outputs: bytes | None
    # Whether there are logits, and embeddings, of the last batch.
    _has: tuple[bool, bool]
    # Whether its graph computes logits at all.
    _has_logits: bool
    # Whether the next batch computes embeddings.
    _embeddings: bool
    # Whether it sees one batch at a time.
    _memoryless: bool
    # Whether the output of its encoder is for its decoder, and which sequences that output has.
    _feeds_decoder: bool
    _encoded: frozenset[int] | None
    _n_outputs_max: int
    # n_batch, the number of tokens in the vocabulary, and n_seq_max.
    _sizes: tuple[int, int, int]
    # How many positions the model has learned; 0 if there is no such limit.
    _n_positions: int
    # Whether its batches need more checks than others.
    _special: bool
    # What its graph shows, the struct llamacffi_graph.
    _graph: Any
    # Why its keys cannot be turned; empty if they can, None if nobody has asked.
    _turning: str | None
    # Who sees its graphs.
    _observer: Observer | None
    # To be held while C computes: the lock of the context whose memory or weights it uses.
    _other_context: CallLock | None
    # Whether its threads have the processors that they need.
    _contention: Contention
    # What of the counters does not count.
    _perf_offset: ContextPerf | None
    # The struct llamacffi_abort_flag that C polls.
    _abort: Any
    # The struct llama_context_params that it was created with.
    _params: Any
    # What samplers read.
    __llama_outputs__: WeakOutputs
    # The chains that it samples with in its graph.
    _graph_samplers: GraphSamplers
    # The adapters and the control vector in use.
    _active: ActiveAdapters
    # What of each sequence is kept on its device: who has asked for it last.
    _snapshots: dict[int, Mark]

    @property
    def n_ctx(self) -> int:
        """How many tokens it can remember, over all sequences.  Source: ``llama_n_ctx``."""
        return int(lib.llama_n_ctx(self.ptr))

    @property
    def n_ctx_seq(self) -> int:
        """How many tokens one sequence can have.  Source: ``llama_n_ctx_seq``."""
        return int(lib.llama_n_ctx_seq(self.ptr))

    @property
    def n_batch(self) -> int:
        """How many tokens one batch can have.  Source: ``llama_n_batch``."""
        return int(lib.llama_n_batch(self.ptr))

    @property
    def n_ubatch(self) -> int:
        """How many tokens are computed at once.  Source: ``llama_n_ubatch``."""
        return int(lib.llama_n_ubatch(self.ptr))

    @property
    def n_seq_max(self) -> int:
        """How many sequences it can have.  Source: ``llama_n_seq_max``."""
        return int(lib.llama_n_seq_max(self.ptr))

    @property
    def n_rs_seq(self) -> int:
        """How many tokens a recurrent sequence can be taken back.  Source: ``llama_n_rs_seq``."""
        return n_rs_seq(self.ptr)

    @property
    def n_outputs_max(self) -> int:
        """How many outputs one batch can have."""
        self.ptr  # noqa: B018  raises if closed
        return int(self._n_outputs_max)

    @property
    def pooling_type(self) -> PoolingType:
        """How the embeddings of a sequence are made one.  Source: ``llama_pooling_type``."""
        from .._generated.enums import PoolingType

        return PoolingType(lib.llama_pooling_type(self.ptr))
