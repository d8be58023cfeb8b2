"""One of each object that owns C objects, each in use by others: to be closed in any order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from llamacffi import (
    Adapter,
    Batch,
    Candidates,
    Context,
    ControlVector,
    CustomSampler,
    Dist,
    Gguf,
    Grammar,
    Model,
    Penalties,
    SamplerChain,
    Threadpool,
    TopK,
    generate,
)

GRAMMAR = 'root ::= ( " " [a-zA-Z.,] [a-z]* | [.,] )*'


def build(
    demo: str | Path, lora: str | Path, wide: str | Path, draft: str | Path
) -> dict[str, Any]:
    """Return the objects by name.

    Args:
        demo: The built-in model.
        lora: An adapter for it.
        wide: A model of two layers, for a control vector.
        draft: Its draft model.
    """
    made: dict[str, Any] = {}
    model = made["model"] = Model(demo)
    made["vocab"] = model.vocab
    made["pool"] = Threadpool(1)
    seen: list[str] = []

    def look(tensor: Any, ask: bool) -> bool:
        seen.append(tensor.name)
        return False

    made["first"] = Context(model, n_ctx=64, n_ubatch=32, n_threads=1, cb_eval=look)
    made["second"] = Context(model, n_ctx=64, n_ubatch=32, n_threads=1)
    for name in ("first", "second"):
        made[name].attach_threadpool(made["pool"])
    made["adapter"] = Adapter(model, lora)
    made["first"].adapters = {made["adapter"]: 0.5}
    choose = CustomSampler(lambda candidates: None, accept=seen.append, clone=lambda: choose)
    made["chain"] = SamplerChain(
        Grammar(GRAMMAR), Penalties(), TopK(40), choose, Dist(1), vocab=model.vocab
    )
    batch = Batch(8)
    batch.add(model.vocab.tokenize("The llama is"))
    made["first"].decode(batch)
    made["chain"].sample(made["first"])
    made["clone"] = made["chain"].clone()
    made["view"] = made["first"].logits_view()
    made["candidates"] = Candidates.from_context(made["first"])
    made["generation"] = generate(made["second"], "The", sampler=made["clone"])
    next(made["generation"])
    made["snapshot"] = made["second"].snapshot()
    made["graph_chain"] = SamplerChain(TopK(40), Dist(1))
    made["third"] = Context(model, n_ctx=64, n_threads=1, samplers={0: made["graph_chain"]})
    made["other_model"] = Model(wide)
    made["steered"] = Context(made["other_model"], n_ctx=64, n_threads=1)
    made["vector"] = ControlVector.from_array(np.ones((1, 64), np.float32))
    made["steered"].control_vector = made["vector"]
    made["draft_model"] = Model(draft)
    made["draft"] = Context(made["draft_model"], n_ctx=64, n_threads=1, ctx_other=made["steered"])
    made["gguf"] = Gguf.open(lora)
    made["tensor"] = next(iter(made["gguf"].tensors.values())).data
    made["memory"] = made["second"].memory
    return made


# How an object goes.
def _close(made: dict[str, Any], name: str) -> None:
    close = getattr(made[name], "close", None)
    if close is not None:
        close()
        close()
    del made[name]


def _drop(made: dict[str, Any], name: str) -> None:
    del made[name]


ENDS: dict[str, Callable[[dict[str, Any], str], None]] = {"close": _close, "drop": _drop}
