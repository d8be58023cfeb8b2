"""A user's program that uses the whole API: read by type checkers, never run.

Each function covers one part of the package.  `assert_type` states what a user may rely on.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

import llamacffi
from llamacffi import (
    DRY,
    XTC,
    AbortedError,
    Adapter,
    AdapterError,
    AdaptiveP,
    ArgumentError,
    BackendUnavailableError,
    Batch,
    BufferType,
    BuildInfo,
    BusyError,
    Candidates,
    Capabilities,
    ClosedError,
    Context,
    ContextError,
    ContextFullError,
    ContextParams,
    ContextPerf,
    ContextShift,
    ControlVector,
    CustomSampler,
    DecodeError,
    DependencyError,
    Device,
    DeviceMemory,
    Dist,
    ForkError,
    Generation,
    Gguf,
    GgufError,
    GgufTensor,
    Grammar,
    GrammarError,
    Greedy,
    Imatrix,
    ImatrixCollector,
    Infill,
    InvalidBatchError,
    LibraryNotFoundError,
    LlamaError,
    LoadError,
    LogitBias,
    LogitsProcessor,
    Memory,
    MinP,
    MinTokens,
    Mirostat,
    MirostatV2,
    Model,
    ModelNotFoundError,
    ModelParams,
    NativeError,
    Penalties,
    QuantizeError,
    QuantizeParams,
    QuantizeResult,
    RpcServer,
    Sampler,
    SamplerChain,
    SamplerPerf,
    Snapshot,
    StateError,
    StateInfo,
    Temp,
    TempExt,
    TensorView,
    Threadpool,
    Token,
    TokenizeError,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    UnsupportedError,
    Vocab,
    backend,
    buffer_types,
    build_info,
    capabilities,
    capture_logs,
    cmake_dir,
    compute_imatrix,
    constants,
    cpu_features,
    demo,
    device,
    devices,
    enums,
    ffi,
    ffi_builder,
    ftype_name,
    ftype_of,
    ftypes,
    generate,
    gguf,
    hub,
    include_dir,
    lib,
    library_dir,
    log,
    merge_lora,
    numa_init,
    quantize,
    rpc,
    shards,
    state_info,
    system_info,
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


def load(path: Path) -> Model:
    """Get models, from everywhere."""
    params: ModelParams = {"n_gpu_layers": 0, "load_mode": "none", "check_tensors": True}
    with Model(path, **params) as model:
        assert_type(model, Model)
    Model(str(path), progress=print, cpu_moe=True, n_cpu_moe=2, split_mode=enums.SplitMode.LAYER)
    Model(path, devices=["CPU"], tensor_split=[3, 1], kv_overrides={"a": 1, "b": "text", "c": 0.5})
    Model(path, devices="none", tensor_buft_overrides={r"ffn_.*": device("CPU")})
    Model(path, progress=lambda part: part < 0.5)
    with open(path, "rb") as file:
        Model.from_file(file, offset=32, n_gpu_layers=0)
    Model.from_file(path.read_bytes(), progress=None)
    Model.from_file(io.BytesIO(b""))
    Model.from_file(3, offset=0)
    Model.from_splits([path, str(path)], cpu_moe=False)
    with Gguf.open(path) as gguf:
        Model.from_gguf(gguf, n_gpu_layers=0)
        Model.from_gguf(gguf, fill)
    assert_type(hub.download("owner/name", "*.gguf", revision="main"), list[str])
    return Model.from_pretrained("owner/name:Q4_K_M", cache_dir=path, token=False, vocab_only=True)


def fill(name: str, array: npt.NDArray[Any]) -> None:
    """Write weights."""
    array[:] = len(name)


def look_at(model: Model) -> None:
    """Read what is known of a model."""
    assert_type(model.path, str | None)
    assert_type(model.metadata, Mapping[str, str])
    names: list[str] = [model.architecture, model.desc, model.ftype_name]
    assert_type(model.ftype, enums.Ftype | None)
    sizes: list[int] = [model.size, model.n_params, model.n_ctx_train, model.n_embd, model.n_layer]
    sizes += [model.n_embd_inp, model.n_embd_out, model.n_layer_nextn, model.n_head]
    sizes += [model.n_head_kv, model.n_swa, model.n_cls_out]
    assert_type(model.rope_type, enums.RopeType)
    assert_type(model.rope_freq_scale_train, float)
    kinds: list[bool] = [model.has_encoder, model.has_decoder, model.is_recurrent, model.is_hybrid]
    kinds += [model.is_diffusion, model.closed]
    assert_type(model.decoder_start_token, int | None)
    assert_type(model.cls_labels, tuple[str | None, ...])
    assert_type(model.chat_template("tool_use"), str | None)
    assert_type(model.chat_templates, Mapping[str, str])
    assert_type(model.recommended_sampling, Mapping[str, int | float | str])
    assert_type(model.devices, tuple[Device, ...])
    assert_type(model.placement, Mapping[str, int])
    assert_type(model.without_weights, str | None)
    model.save("copy.gguf")
    print(names, kinds, sizes, model.ptr)
    model.close()


def text(vocab: Vocab) -> list[int]:
    """Turn text into tokens and back."""
    assert_type(vocab.tokenize("text", add_special=False, parse_special=True), list[int])
    assert_type(vocab.tokenize_array(b"text"), Ints)
    assert_type(vocab.n_tokens(bytearray(b"text")), int)
    assert_type(vocab.tokenize_batch(["one", b"two"], n_threads=2), list[list[int]])
    assert_type(vocab.tokenize_batch_array(["one"]), list[Ints])
    assert_type(vocab.detokenize([1, 2], remove_special=True, unparse_special=True), str)
    assert_type(vocab.detokenize_bytes(vocab.tokenize_array("a"), exact=False), bytes)
    assert_type(vocab.detokenize_batch([[1], [2, 3]]), list[str])
    vocab.check((1, 2, 3))
    vocab.warn_of_second_bos([1, 1])
    assert_type(vocab.model, Model)
    assert_type(vocab.type, enums.VocabType)
    assert_type(vocab.piece(vocab.check_one(3), lstrip=1, special=False), bytes)
    assert_type((vocab.text(3), vocab.score(3)), tuple[str, float])
    assert_type(vocab.attr(3), enums.TokenAttr)
    assert_type((vocab.is_eog(2), vocab.is_control(2)), tuple[bool, bool])
    ends: tuple[int, ...] = vocab.eog_tokens + vocab.suppress_tokens
    special: list[int | None] = [vocab.bos, vocab.eos, vocab.eot, vocab.sep, vocab.nl, vocab.pad]
    special += [vocab.mask, vocab.fim_pre, vocab.fim_suf, vocab.fim_mid, vocab.fim_pad]
    special += [vocab.fim_rep, vocab.fim_sep]
    adds: list[bool] = [vocab.add_bos, vocab.add_eos, vocab.add_sep]
    print(len(vocab), vocab.ptr, adds, special)
    return list(ends)


def compute(model: Model, pool: Threadpool) -> Context:
    """Compute batches by hand."""
    params: ContextParams = {"n_ctx": 512, "type_k": "q8_0", "flash_attn_type": "enabled"}
    params |= {"n_seq_max": 4, "kv_unified": True, "cb_eval": watch, "no_perf": False}
    context = Context(model, **params)
    Context(model, ctx_other=context, samplers={0: SamplerChain(Greedy())}, embeddings=True)
    batch = Batch(64, n_seq_max=2, n_embd=0)
    assert_type(batch.add([1, 2, 3], pos=0, seq_ids=(0, 1), logits="all"), range)
    batch.add(np.array([4, 5]), pos=[3, 4], seq_ids=[2], logits=[False, True])
    batch.add_embeddings(np.zeros((3, model.n_embd), np.float32), logits="none")
    batch.set_one(7, 3, 1)
    batch.truncate(1)
    assert_type((batch.tokens, batch.positions, batch.embeddings), tuple[Ints, Ints, Floats])
    assert_type(batch.seq_ids, list[list[int]])
    assert_type(batch.starts(), dict[int, int])
    assert_type(batch.outputs(), bytes)
    numbers: list[int] = [batch.capacity, batch.n_left, batch.n_seq_max, batch.n_embd, len(batch)]
    batch.check(len(model.vocab), 4)
    print(batch.ptr, batch.is_coupled, numbers)
    batch.clear()
    context.decode(Batch.from_tokens(model.vocab.tokenize_array("text")))
    context.encode(batch)
    assert_type(context.logits(-1, out=np.empty(len(model.vocab), np.float32)), Floats)
    assert_type((context.logits_view(), context.logits_all()), tuple[Floats, Floats])
    assert_type((context.embeddings(0), context.embeddings_view()), tuple[Floats, Floats])
    assert_type((context.embeddings_all(), context.embeddings_seq(0)), tuple[Floats, Floats])
    context.set_embeddings(True)
    context.set_causal_attn(False)
    assert_type((context.embeddings_enabled, context.causal_attn), tuple[bool, bool])
    assert_type(context.pooling_type, enums.PoolingType)
    context.n_threads, context.n_threads_batch = 1, 2
    context.attach_threadpool(pool, pool)
    context.detach_threadpool()
    sizes: list[int] = [context.n_ctx, context.n_ctx_seq, context.n_batch, context.n_ubatch]
    sizes += [context.n_seq_max, context.n_rs_seq, context.n_outputs, context.n_outputs_max]
    context.warmup()
    assert_type(context.perf(), ContextPerf)
    print(context.perf().t_eval_ms, context.perf().tokens_per_second, context.kv_unified, sizes)
    assert_type(context.perf().prompt_tokens_per_second, float | None)
    context.reset_perf()
    context.synchronize()
    context.cancel()
    with context.exclusive:
        assert_type(context.model, Model)
    return context


def watch(tensor: TensorView, ask: bool) -> bool:
    """Look at a node of a graph."""
    assert_type((tensor.name, tensor.shape, tensor.nbytes), tuple[str, tuple[int, ...], int])
    assert_type((tensor.op, tensor.type), tuple[enums.GgmlOp, enums.GgmlType])
    assert_type(tensor.sources, tuple[TensorView | None, ...])
    assert_type(tensor.to_numpy(), npt.NDArray[Any])
    return ask and tensor.ptr is not None


def remember(memory: Memory) -> None:
    """Work on what is remembered."""
    memory.clear(data=False)
    assert_type(memory.remove(0, 5, None), bool)
    memory.keep(0)
    memory.copy(0, 1, 0, 5)
    memory.fork(0, 1)
    memory.shift(0, -3, 4)
    memory.cut(0, 1, 3)
    memory.divide(0, 2)
    assert_type((memory.pos_min(0), memory.pos_max()), tuple[int | None, int | None])
    assert_type((memory.next_pos(), memory.can_shift), tuple[int, bool])
    print(memory.ptr)


def every_sampler(vocab: Vocab) -> Iterator[Sampler]:
    """Describe all samplers."""
    yield from (Greedy(), Dist(seed=1), Mirostat(m=50), MirostatV2(tau=4.0), AdaptiveP(0.5))
    yield from (TopK(40), TopP(0.9, min_keep=2), MinP(0.05), Typical(0.9), TopNSigma(1.0))
    yield from (XTC(0.5, threshold=0.1), Temp(0.8), TempExt(0.8, delta=0.2), MinTokens(3), Infill())
    yield from (Penalties(64, repeat=1.1), DRY(0.8, seq_breakers=["\n"]), LogitBias({3: -math.inf}))
    yield from (LogitBias.eog(vocab), LogitBias.suppress(vocab))
    grammar = Grammar('root ::= "a"', trigger_patterns=["a"], trigger_tokens=[3])
    assert_type(grammar.lazy, bool)
    yield grammar
    yield CustomSampler(prefer, accept=print, reset=lambda: None, name="mine", selects=False)
    yield LogitsProcessor(process)
    greedy = Greedy()
    assert_type(greedy.selects, bool)


def prefer(candidates: Candidates) -> None:
    """Change candidates."""
    candidates.logit[candidates.id == 3] += 1
    candidates.keep(candidates.logit > 0)
    candidates.size, candidates.selected, candidates.sorted = 1, 0, True
    assert_type((candidates.id, candidates.logit, candidates.p), tuple[Ints, Floats, Floats])
    assert_type(candidates.token, int | None)
    print(candidates.data, candidates.ptr, candidates.selected, candidates.sorted)


def process(tokens: Ints, scores: Floats) -> Floats:
    """Change scores."""
    scores[tokens] = -math.inf
    return scores


def choose(context: Context, vocab: Vocab) -> None:
    """Choose tokens."""
    chain = SamplerChain(*every_sampler(vocab), vocab=vocab, grammar_first=False, no_perf=False)
    assert_type(chain.sample(context, -1), int)
    chain.accept(3)
    chain.accept_prompt([1, 2])
    candidates = Candidates.from_context(context)
    chain.apply(Candidates([1.0, 2.0], ids=[5, 6]))
    other = chain.clone()
    assert_type(other, SamplerChain)
    other.copy_from(chain)
    other.reset()
    assert_type(chain.with_seed(7), SamplerChain)
    assert_type((chain[0], chain[1:]), tuple[Sampler, tuple[Sampler, ...]])
    assert_type((chain.names, chain.seed, len(chain)), tuple[list[str], int | None, int])
    assert_type(chain.perf(), SamplerPerf)
    assert_type(chain.perf().t_sample_ms, float | None)
    chain.reset_perf()
    assert_type(SamplerChain.default(temp=0.5, seed=1), SamplerChain)
    assert_type(SamplerChain.from_model(context.model, temp=0.5, top_k=20), SamplerChain)
    context.set_sampler(0, chain)
    assert_type(context.samplers, Mapping[int, SamplerChain])
    assert_type(context.sampled_token(), int | None)
    assert_type(context.sampled_logits(), Floats | None)
    assert_type(context.sampled_probs(), Floats | None)
    assert_type(context.sampled_candidates(), Ints | None)
    print(list(chain), chain.ptr, chain.closed, len(candidates))
    chain.close()


def write(context: Context) -> str:
    """Generate text."""
    stop_when: Callable[[Sequence[int]], bool] = lambda tokens: len(tokens) > 5  # noqa: E731
    generation = generate(
        context,
        "text",
        sampler=SamplerChain(Dist()),
        max_tokens=10,
        stop=["."],
        stop_when=stop_when,
        top_logprobs=2,
        overflow=ContextShift(n_keep=2, n_discard=None),
    )
    assert_type(generation, Generation)
    for token in generation:
        assert_type(token, Token)
        assert_type((token.id, token.text, token.logprob), tuple[int, str, float | None])
        assert_type(token.top_logprobs, tuple[tuple[int, float], ...])
    reason = generation.finish_reason
    assert_type(reason, Literal["stop", "eog", "length", "context"] | None)
    assert_type(generation.tokens, tuple[int, ...])
    assert_type((generation.n_prompt, generation.n_generated), tuple[int, int])
    assert_type((generation.prompt_seconds, generation.seconds), tuple[float, float])
    assert_type((generation.stop_match, generation.seed), tuple[str | None, int | None])
    assert_type(generation.context, Context)
    generation.close()
    ContextShift().check(context)
    assert_type(ContextShift().make_room(context, 0, 5, 1), int)
    return generate(context, np.array([1, 2]), seq_id=1, logprobs=True).text()


def adapt(model: Model, context: Context) -> None:
    """Change what a context computes."""
    adapter = Adapter(model, "adapter.gguf")
    assert_type(context.adapters, Mapping[Adapter, float])
    context.adapters = {adapter: 0.5}
    context.adapters = None
    assert_type((adapter.alpha, adapter.task_name), tuple[float | None, str | None])
    assert_type((adapter.metadata, adapter.prompt_prefix), tuple[Mapping[str, str], str | None])
    assert_type(adapter.invocation_start([1, 2]), int | None)
    assert_type((adapter.invocation_tokens, adapter.model), tuple[tuple[int, ...], Model])
    print(adapter.ptr, adapter.closed)
    adapter.close()
    merge_lora("model.gguf", {"adapter.gguf": 1.0}, "merged.gguf", type="f16")
    vector = 0.5 * ControlVector.from_array(np.ones((2, 8)), first_layer=1)
    assert_type(context.control_vector, ControlVector | None)
    context.control_vector = (vector + ControlVector.from_file("vector.gguf") - vector) / 2
    assert_type((vector.array, vector.layers, vector.n_embd), tuple[Floats, range, int])
    assert_type(-vector.within(range(1, 2)), ControlVector)


def save(context: Context) -> Snapshot:
    """Save and load what is remembered."""
    assert_type(context.save_state(seq_id=0, partial=True), bytes)
    context.load_state(b"", seq_id=1, any_adapters=True)
    context.save_file("file", [1, 2], plain=True)
    assert_type(context.load_file(Path("file"), seq_id=None), list[int])
    info = state_info("file")
    assert_type(info, StateInfo)
    assert_type((info.tokens, info.n_bytes, info.model), tuple[list[int], int, str | None])
    snapshot = context.snapshot(0, partial=True)
    assert_type((snapshot.seq_id, snapshot.partial, snapshot.end), tuple[int, bool, int | None])
    context.restore(snapshot, seq_id=1)
    return snapshot


def edit(path: Path) -> GgufTensor:
    """Work on files."""
    with path.open("rb") as stream:
        Gguf.from_file(stream, metadata_only=True).close()
    Gguf.from_bytes(b"").close()
    new = Gguf.new()
    new["key"] = [1, 2, 3]
    new.set("number", 1, type="u64")
    new.update({"text": "a"})
    del new["key"]
    assert_type((new.type("number"), new.is_array("number")), tuple[enums.GgufType, bool])
    assert_type((new.version, new.alignment, new.data_offset), tuple[int, int, int])
    new.add_tensor("a", np.ones((2, 32)), type="q8_0", imatrix=np.ones(32))
    new.replace_tensor("a", np.zeros(8, np.float16))
    new.rename_tensor("a", "b")
    assert_type(new.tensors, Mapping[str, GgufTensor])
    tensor = new.copy().remove_tensor("b")
    assert_type((tensor.name, tensor.shape, tensor.offset), tuple[str, tuple[int, ...], int | None])
    assert_type((tensor.nbytes, tensor.n_elements, tensor.hash()), tuple[int, int, str])
    assert_type((tensor.type, tensor.dequantize()), tuple[enums.GgmlType, Floats])
    print(tensor.data, tensor.raw, new.hash("md5"), new.ptr, new.closed, len(new.to_bytes()))
    new.write(path)
    gguf.dequantize_array(gguf.quantize_array(np.ones((2, 32)), "q8_0"), "q8_0")
    assert_type(shards.split(path, "part", max_bytes=10**9), list[Path])
    shards.merge("part-00001-of-00002.gguf", path)
    return tensor


def shrink(path: Path, model: Model) -> QuantizeResult:
    """Quantize."""
    params: QuantizeParams = {"nthread": 2, "imatrix": {"a": np.ones(3)}, "pure": True}
    result = quantize(path, "out.gguf", "Q4_K_M", progress=lambda part: None, **params)
    assert_type(result.types, Mapping[str, enums.GgmlType])
    assert_type((result.paths, result.bits_per_weight), tuple[tuple[Path, ...], float])
    assert_type((result.ftype, result.n_elements), tuple[enums.Ftype | None, int])
    assert_type(result.size_before - result.size_after, int)
    assert_type([*ftypes(), ftype_of("Q8_0")], list[enums.Ftype])
    assert_type(ftype_name(enums.Ftype.MOSTLY_Q8_0), str)
    collector = ImatrixCollector(process_output=True)
    Context(model, cb_eval=collector)
    imatrix = compute_imatrix(model, "text", chunk_size=64, progress=print)
    assert_type(imatrix.merge(collector.imatrix(dataset="text")), Imatrix)
    assert_type(imatrix["a"], npt.NDArray[np.float32])
    imatrix.save("a.imatrix")
    return quantize(path, None, imatrix=Imatrix.open("a.imatrix"), dry_run=True)


def machine() -> None:
    """Look at the machine."""
    for one in [*devices(), device("CPU")]:
        assert_type(one, Device)
        assert_type((one.name, one.description, one.kind), tuple[str, str, str])
        assert_type(one.memory(), DeviceMemory)
        assert_type((one.memory_free, one.memory_total), tuple[int, int])
        assert_type((one.device_id, one.caps), tuple[str | None, dict[str, bool]])
        assert_type(one.buffer_type, BufferType)
        assert_type(one.host_buffer_type, BufferType | None)
        assert_type(one.extra_buffer_types, list[BufferType])
        print(one.ptr, one.backend)
    assert_type(buffer_types()[0].max_size, int | None)
    assert_type(capabilities(), Capabilities)
    assert_type((cpu_features(), system_info()), tuple[dict[str, bool], str])
    numa_init("distribute")
    backend.load()
    assert_type(backend.backends(), list[str])
    assert_type((backend.features("CPU"), backend.load_library("a.so")), tuple[dict[str, str], str])
    assert_type((backend.physical_cores(), backend.time_us()), tuple[int, int])
    backend.unload("BLAS")
    pool = Threadpool(2, cpus=[0, 1], priority="low", poll=0, strict_cpu=True, paused=True)
    pool.pause()
    pool.resume()
    assert_type((pool.n_threads, pool.cpus), tuple[int, frozenset[int] | None])
    print(pool.ptr, pool.closed)
    pool.close()
    with RpcServer(devices=["CPU"], n_threads=1) as server:
        assert_type(rpc.add_server(server.endpoint, timeout=1.0), list[Device])
        server.close()
        assert_type(server.closed, bool)


def interop(context: Context, batch: Batch) -> Any:
    """Build and call a module of one's own."""
    assert_type((include_dir(), library_dir(), cmake_dir()), tuple[Path, Path, Path])
    build = build_info()
    assert_type(build, BuildInfo)
    assert_type((build.commit, build.library_commit), tuple[str, str | None])
    assert_type((context.address, context.memory.address, batch.address), tuple[int, int, int])
    return ffi_builder()


def logged() -> str:
    """Read the log."""
    log.set_level("INFO")
    assert_type(log.get_level(), int)
    log.drain()
    with capture_logs("WARNING", forward=False, thread=True) as lines:
        assert_type(lines, log.CapturedLog)
    for line in lines:
        assert_type(line, log.LogLine)
        assert_type((line.level, line.text, line.time), tuple[int, str, float])
    return lines.text


def built_in() -> None:
    """Use the model that is built in."""
    assert_type(demo.path(), Path)
    demo.write(Path("demo.gguf"))
    assert_type((demo.to_bytes(), demo.width()), tuple[bytes, int])
    assert_type(demo.log_probabilities(), Floats)
    entry = demo.vocabulary()[0]
    assert_type(entry, demo.Entry)
    assert_type((entry.text, entry.score, entry.state), tuple[str, float, int])


def raw() -> int:
    """Call C."""
    params = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
    params.n_gpu_layers = 0
    assert_type(lib.llama_max_devices(), int)
    assert_type(enums.Ftype.MOSTLY_Q8_0.value, int)
    print(llamacffi.__name__)
    return constants.LLAMA_TOKEN_NULL


def fail(function: Callable[[], None]) -> str:
    """Catch errors, the more special ones first."""
    try:
        function()
    except (InvalidBatchError, ContextFullError, AbortedError) as error:
        assert_type(error.pos_max, Mapping[int, int | None])
    except DecodeError as error:
        assert_type(error.code, int)
    except TokenizeError as error:
        assert_type(error.index, int | None)
    except NativeError as error:
        assert_type(error.function, str)
    except (ModelNotFoundError, LibraryNotFoundError, LoadError) as error:
        assert_type(error.errno, int | None)
    except (ArgumentError, ClosedError, AdapterError, StateError, GrammarError, GgufError) as error:
        values: ValueError = error
        return str(values)
    except (ForkError, BusyError, ContextError, QuantizeError, UnsupportedError) as error:
        return str(error)
    except BackendUnavailableError as error:
        runtime: RuntimeError = error
        return str(runtime)
    except DependencyError as error:
        missing: ImportError = error
        return str(missing)
    except LlamaError:
        pass
    return ""
