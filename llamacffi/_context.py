"""What the parts of a `Context` share: its C object, its lock, and what was computed last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._handle import Exclusive, Handle

if TYPE_CHECKING:
    from typing import Any

    from ._adapters import Applied
    from ._lineage import Lineage
    from ._threads import Computing
    from ._views import Exports
    from .model import Model
    from .vocab import Vocab


class ContextBase(Handle):
    """The attributes of a `Context`; `Context` itself fills them.

    Each part of a context (outputs, state, adapters) is a class over this one in a module of its
    own, without slots, and `Context` is all of them.
    """

    __slots__ = (
        "_abort",
        "_applied",
        "_computing",
        "_drafts",
        "_exports",
        "_lineage",
        "_outputs",
        "_params",
        "_snapshots",
        "_vocab",
        "exclusive",
        "kv_unified",
        "model",
    )

    model: Model
    """The model that it computes with."""
    kv_unified: bool
    """Whether all sequences share one buffer."""
    exclusive: Exclusive
    """Held during each call: a context is for one thread at a time."""
    # What to hold while C computes, one token or several; None after `close`.
    _computing: tuple[Computing, Computing] | None
    _vocab: Vocab
    _exports: Exports
    _lineage: Lineage
    # Whether it reads embeddings beside tokens: a draft model's, from the state of its target.
    _drafts: bool
    # Which tokens of the last batch have an output, a byte each; None before the first batch.
    _outputs: bytes | None
    # The struct llamacffi_abort_flag that C polls.
    _abort: Any
    # The struct llama_context_params that it was created with.
    _params: Any
    # The adapters and the control vector in use.
    _applied: Applied
    # What of each sequence is kept on its device: who has asked for it last.
    _snapshots: dict[int, object]
