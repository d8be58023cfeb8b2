"""Objects and operations on them, for `tests.facade.interrupts` to interrupt."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llamacffi import (
    DRY,
    Adapter,
    Batch,
    Candidates,
    Context,
    CustomSampler,
    Dist,
    Gguf,
    Grammar,
    Model,
    Penalties,
    SamplerChain,
    TensorView,
    Threadpool,
    TopK,
    generate,
    quantize,
)
from llamacffi._core.ownership import Handle
from llamacffi.gguf.shards import split


class Subject:
    """The objects, and the operations to interrupt."""

    def __init__(self, path: str, lora: str, directory: str) -> None:
        self.path, self.lora, self.directory = path, lora, Path(directory)
        self.model, self.words = Model(path), Model(path, vocab_only=True)
        self.adapter = Adapter(self.model, lora)
        self.context = Context(
            self.model, n_ctx=64, n_threads=1, n_seq_max=2, kv_unified=True, no_perf=False
        )
        self.sampler = SamplerChain(Penalties(), TopK(40), Dist(1))
        self.in_graph = SamplerChain(TopK(4), Dist(1))
        self.made: Handle | SamplerChain | None = None
        self.want = self.text()

    def text(self) -> str:
        """Return the result that must always be the same."""
        self.context.memory.clear(data=False)
        return generate(self.context, "The llama", sampler=self.sampler, max_tokens=3).text()

    @property
    def newest(self) -> Handle | SamplerChain:
        """The object that an operation has created; before that, the model that it comes from."""
        return self.made or self.model

    def decode(self, *tokens: int) -> None:
        """Decode tokens from position 0."""
        self.context.memory.clear(data=False)
        self.context.decode(Batch.from_tokens(tokens))

    def check(self) -> None:
        """Raise unless all objects are still usable."""
        self.made = None
        self.context.adapters = {}
        self.context.set_sampler(1, None)
        self.context.set_embeddings(False)
        self.in_graph.reset()  # also drops the frame of an interrupted call
        self.context.detach_threadpool()
        self.context.n_threads = self.context.n_threads_batch = 1
        assert self.text() == self.want, self.want

    def generate(self) -> None:
        assert self.text() == self.want

    def view(self) -> None:
        context = self.context
        context.memory.clear(data=False)
        context.set_embeddings(True)
        context.decode(Batch.from_tokens([5]))
        views = [context.logits_view(), context.embeddings_view()]
        views.append(views[0][3:5])
        del views
        context.decode(Batch.from_tokens([6], 1))
        context.set_embeddings(False)

    def set_threads(self) -> None:
        self.context.n_threads = 2
        self.context.n_threads = 1
        self.context.n_threads_batch = 1

    def set_adapters(self) -> None:
        self.context.adapters = {self.adapter: 0.5}
        self.context.decode(Batch.from_tokens([5], self.context.memory.next_pos()))
        self.context.adapters = None

    def attach(self) -> None:
        self.made = pool = Threadpool(2)
        self.context.attach_threadpool(pool)
        for _ in range(2):
            self.context.decode(Batch.from_tokens([5], self.context.memory.next_pos()))
        self.context.detach_threadpool()

    def restore(self) -> None:
        self.context.restore(self.context.snapshot())

    def load_state(self) -> None:
        self.context.load_state(self.context.save_state())

    def make_context(self) -> None:
        with Context(self.model, n_ctx=32, n_threads=1) as context:
            self.made = context
            context.decode(Batch.from_tokens([1]))

    def make_sampling_context(self) -> None:
        chains = {0: self.in_graph}
        with Context(self.model, n_ctx=32, n_threads=1, samplers=chains) as context:
            self.made = context
            context.decode(Batch.from_tokens([1]))
            self.in_graph.sample(context)

    def make_model(self) -> None:
        with Model(self.path) as model:
            self.made = model
            model.vocab.tokenize("a")

    def make_adapter(self) -> None:
        with Adapter(self.model, self.lora) as adapter:
            self.made = adapter
            self.context.adapters = {adapter: 1.0}

    def make_chain(self) -> None:
        with SamplerChain(Penalties(), Grammar("root ::= [a-z ]*"), Dist(1)) as chain:
            self.made = chain
            self.decode(1)
            chain.sample(self.context)
            chain.clone()

    def set_sampler(self) -> None:
        self.context.set_sampler(1, self.in_graph)
        self.context.set_sampler(1, None)

    def sample_in_graph(self) -> None:
        context, chain = self.context, self.in_graph
        context.set_sampler(1, chain)
        context.memory.clear(data=False)
        context.decode(Batch.from_tokens([5, 6], seq_ids=(1,)))
        chain.sample(context)
        context.set_sampler(1, None)

    def copy_chain(self) -> None:
        with self.sampler.clone() as copy:
            self.made = copy
            copy.copy_from(self.sampler)
            copy.reset()

    def look_at_chains(self) -> None:
        for chain in (self.sampler, self.in_graph):
            assert repr(chain)
            assert len(chain.names) == len(chain)
            assert chain.seed == 1
            chain.perf()

    def sample_in_python(self) -> None:
        clone = CustomSampler(lambda _: None)
        python = CustomSampler(lambda one: one.keep([0, 1]), clone=lambda: clone)
        with SamplerChain(DRY(0.8), python, Dist(1), vocab=self.model.vocab) as chain:
            self.made = chain
            self.decode(1, 2)
            chain.accept_prompt([1, 2])
            chain.sample(self.context)
            chain.clone().reset()

    def use_candidates(self) -> None:
        self.decode(1, 2)
        candidates = Candidates.from_context(self.context)
        self.sampler.apply(candidates)
        assert candidates.token is not None
        self.sampler.accept(candidates.token)
        self.sampler.reset()

    def observe(self) -> None:
        def look(tensor: TensorView, ask: bool) -> bool:
            return ask or len(tensor.name) > 0

        with Context(self.model, n_ctx=32, n_threads=1, cb_eval=look) as context:
            self.made = context
            context.decode(Batch.from_tokens([1, 2]))

    def use_sequences(self) -> None:
        context = self.context
        self.decode(1, 2, 3)
        context.memory.fork(0, 1)
        context.load_state(context.save_state(seq_id=1), seq_id=0)
        context.restore(context.snapshot(seq_id=0))
        context.memory.cut(0, 1, 2)
        context.memory.keep(0)

    def edit_file(self) -> None:
        with Gguf.open(self.path) as gguf:
            self.made = gguf
            gguf["general.name"] = "another"
            for tensor in gguf.tensors.values():
                assert tensor.data.size
            with gguf.copy() as copy:
                copy.remove_tensor(next(iter(copy.tensors)))
                copy.to_bytes()

    def make_of_metadata(self) -> None:
        def fill(_name: str, array: Any) -> None:
            array[...] = 0

        with Gguf.open(self.path, metadata_only=True) as gguf:
            self.made = gguf
            with Model.from_gguf(gguf, fill) as model:
                self.made = model

    def use_text(self) -> None:
        vocab = self.words.vocab
        vocab.tokenize("The llama " * 400)
        vocab.tokenize_batch(["The", "llama"])
        vocab.detokenize([5, 6])
        vocab.piece(5)

    def look_at_vocab(self) -> None:
        vocab = self.words.vocab
        assert vocab.bos is not None
        assert vocab.type
        assert vocab.eog_tokens
        assert vocab.text(5)
        vocab.score(5)
        vocab.attr(5)

    def describe(self) -> None:
        model, context = self.model, self.context
        assert repr(model)
        assert repr(context)
        assert model.metadata
        assert model.placement
        assert model.desc
        assert self.adapter.metadata
        assert context.control_vector is None
        context.synchronize()
        context.perf()

    def read_outputs(self) -> None:
        context = self.context
        context.memory.clear(data=False)
        context.decode(Batch.from_tokens([5, 6]))
        context.logits()
        context.logits_all()
        context.set_embeddings(True)
        context.decode(Batch.from_tokens([5, 6], 2))
        context.embeddings()
        context.embeddings_all()
        context.set_embeddings(False)

    def use_memory(self) -> None:
        memory = self.context.memory
        memory.clear(data=False)
        self.context.decode(Batch.from_tokens([1, 2, 3, 4]))
        memory.copy(0, 1)
        memory.remove(1)
        memory.shift(0, 2)
        self.context.decode(Batch.from_tokens([1], memory.next_pos()))

    def write_files(self) -> None:
        self.context.save_file(self.directory / "state")
        self.context.load_file(self.directory / "state")
        with Gguf.open(self.path) as gguf:
            self.made = gguf
            gguf.write(self.directory / "copy.gguf")

    def save(self) -> None:
        self.model.save(self.directory / "saved.gguf")

    def quantize(self) -> None:
        quantize(self.path, self.directory / "small.gguf", "Q8_0")

    def split(self) -> None:
        split(self.path, self.directory / "part", max_tensors=8)

    def read_open_file(self) -> None:
        with open(self.path, "rb") as file:
            Model.from_file(file, vocab_only=True).close()

    def left(self) -> list[str]:
        """Return the files that should not exist, and the open files."""
        files = [one.name for one in self.directory.iterdir() if one.name.startswith(".")]
        links = Path("/proc/self/fd")
        opened = [os.readlink(one) for one in links.iterdir() if one.is_symlink()]
        return sorted(files + [one for one in opened if ".gguf" in one or "/state" in one])


OPERATIONS = (
    *("generate", "view", "read_outputs", "set_threads", "set_adapters", "attach", "restore"),
    *("load_state", "make_context", "make_sampling_context", "make_model", "make_adapter"),
    *("make_chain", "copy_chain", "look_at_chains", "set_sampler", "sample_in_graph"),
    *("use_memory", "use_text", "look_at_vocab", "describe", "write_files", "save", "quantize"),
    *("split", "read_open_file", "sample_in_python", "use_candidates", "observe"),
    *("use_sequences", "edit_file", "make_of_metadata"),
)
VICTIMS = ("model", "words", "context", "sampler", "in_graph", "adapter", "newest")
