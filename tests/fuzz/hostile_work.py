"""What programs do, in several calls each: it goes deeper than calls at random."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hostile_values import callback, samplers

import llamacffi

if TYPE_CHECKING:
    from hostile import Fuzz


def tokens(f: Fuzz, model: Any) -> list[int]:
    return [f.random.randrange(len(model.vocab)) for _ in range(f.random.choice([1, 1, 2, 7, 40]))]


def context_of(f: Fuzz) -> Any:
    """Return a context that is open, if there is one."""
    found = [one for one in f.objects if isinstance(one, llamacffi.Context) and not one.closed]
    return f.random.choice(found) if found else llamacffi.Context(llamacffi.Model("demo.gguf"))


def decode(f: Fuzz) -> object:
    """Go on with a sequence."""
    context = context_of(f)
    seq_id = f.random.choice([0, 0, 1])
    end = context.memory.pos_max(seq_id)
    chosen = tokens(f, context.model)
    batch = llamacffi.Batch(len(chosen))
    pos = 0 if end is None else end + 1
    batch.add(chosen, pos=pos, seq_ids=(seq_id,), logits=f.random.choice(["all", "last"]))
    f.objects.append(batch)
    if context.model.has_encoder and f.random.random() < 0.5:
        context.encode(batch)
    context.decode(batch)
    return f.random.choice([context.logits, context.logits_view, context.logits_all])()


def sample(f: Fuzz) -> object:
    """Choose a token, perhaps by a sampler that does anything."""
    context = context_of(f)
    decode(f)
    parts = [samplers(f) for _ in range(f.random.randrange(3))]
    custom = llamacffi.CustomSampler(callback(f), accept=f.nested, reset=f.nested)
    chain = llamacffi.SamplerChain(*parts, custom, llamacffi.Dist(1))
    f.objects.append(chain)
    return chain.sample(context)


def generate(f: Fuzz) -> object:
    chain = f.random.choice([None, f.one_of(llamacffi.SamplerChain)])
    generation = llamacffi.generate(
        context_of(f), [1, 2, 3], sampler=chain, max_tokens=5, stop_when=callback(f), logprobs=True
    )
    for _ in generation:
        if f.random.random() < 0.3:
            f.step(-1)
    return generation


def state(f: Fuzz) -> object:
    """Save the state of a context, damage it and load it, there or elsewhere."""
    seq_id = f.random.choice([None, 0, 1])
    f.kept_bytes = [context_of(f).save_state(seq_id=seq_id)]
    other = context_of(f)
    data = f.bytes()
    if f.random.random() < 0.5:
        other.load_state(data, seq_id=seq_id)
    else:
        Path("state.bin").unlink(missing_ok=True)
        Path("state.bin").write_bytes(data)
        other.load_file("state.bin", seq_id=seq_id)
    return decode(f)


def damaged(f: Fuzz) -> object:
    """Load a damaged file, as anything."""
    names = ("demo", "llama", "mamba", "lora", "control", "bert", "lfm2")
    f.kept_bytes = [f.intact(f.random.choice(names)).read_bytes()]
    content = bytearray(f.bytes())
    for _ in range(f.random.randrange(4)):  # the metadata, mostly
        if content:
            content[f.random.randrange(min(3000, len(content)))] ^= 1 << f.random.randrange(8)
    path = Path("written-1.gguf")
    path.unlink(missing_ok=True)  # a model may have it mapped: no file must change in place
    path.write_bytes(content)
    model = f.one_of(llamacffi.Model)
    load: Callable[[], Any] = f.random.choice(
        [
            lambda: llamacffi.Context(llamacffi.Model(path), n_ctx=64, n_threads=1),
            lambda: llamacffi.Model.from_file(bytes(content)),
            lambda: llamacffi.Gguf.open(path),
            lambda: llamacffi.Gguf.from_bytes(content),
            lambda: llamacffi.Adapter(model, path),
            lambda: llamacffi.ControlVector.from_file(path),
            lambda: llamacffi.Imatrix.open(path),
            lambda: llamacffi.quantize(path, "out.gguf", "Q8_0", nthread=1),
            lambda: llamacffi.Model.from_gguf(llamacffi.Gguf.open(path)),
            lambda: llamacffi.shards.split(path, "split", max_tensors=4),
        ]
    )
    return load()


def adapt(f: Fuzz) -> object:
    """Compute with adapters, and with a control vector."""
    context = context_of(f)
    adapter = llamacffi.Adapter(context.model, f.intact("demo-lora"))
    context.adapters = {adapter: 0.5}
    n_embd = context.model.n_embd
    context.control_vector = llamacffi.ControlVector.from_array(np.ones((1, n_embd), np.float32))
    f.objects.append(adapter)
    return decode(f)


def watched(f: Fuzz) -> object:
    """Do long work that calls back."""
    work: Callable[[], Any] = f.random.choice(
        [
            lambda: llamacffi.quantize("demo.gguf", "q.gguf", "Q8_0", nthread=1, progress=f.nested),
            lambda: llamacffi.Model("demo.gguf", progress=f.nested),
            lambda: llamacffi.compute_imatrix(
                context_of(f).model, list(range(1, 40)), chunk_size=8, progress=f.nested
            ),
            lambda: llamacffi.Context(
                context_of(f).model, n_ctx=64, n_threads=1, cb_eval=f.nested
            ).warmup(),
        ]
    )
    return work()


def together(f: Fuzz) -> object:
    """Do things in two threads."""
    thread = threading.Thread(target=f.step, args=(-1,))
    thread.start()
    try:
        return f.random.choice(WORK)(f) if f.random.random() < 0.5 else f.step(-1)
    finally:
        thread.join()


def pools(f: Fuzz) -> object:
    """Share threads between contexts, pause and close them."""
    pool = f.one_of(llamacffi.Threadpool) or llamacffi.Threadpool(2)
    f.objects.append(pool)
    for context in (context_of(f), context_of(f)):
        context.attach_threadpool(pool)
    f.random.choice([pool.pause, pool.close, pool.resume, context_of(f).detach_threadpool])()
    return decode(f)


def graph_samplers(f: Fuzz) -> object:
    """Sample in the graph."""
    context = context_of(f)
    chain = llamacffi.SamplerChain(samplers(f), llamacffi.Dist(1))
    f.objects.append(chain)
    context.set_sampler(0, chain)
    decode(f)
    return chain.sample(context)


def snapshots(f: Fuzz) -> object:
    context = context_of(f)
    snapshot = context.snapshot(f.random.choice([0, 1]), partial=f.random.random() < 0.5)
    f.objects.append(snapshot)
    f.step(-1)
    f.random.choice([context, context_of(f)]).restore(snapshot)
    return decode(f)


WORK: tuple[Callable[[Fuzz], object], ...] = (
    *(decode, decode, sample, generate, state, damaged, damaged, adapt, watched, together),
    *(pools, graph_samplers, snapshots),
)
