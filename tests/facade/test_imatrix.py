"""Importance matrices, compared with the same model computed in numpy."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from llamacffi import (
    ArgumentError,
    Batch,
    Context,
    Gguf,
    GgufError,
    Imatrix,
    ImatrixCollector,
    Model,
    ModelNotFoundError,
    compute_imatrix,
    quantize,
)
from llamacffi.tools.imatrix import Squares
from tests.facade.gguf_models import N_HEAD, write_llama
from tests.facade.imatrices import legacy

TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 96, 64)]
N_EMBD = 64


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("imatrix") / "dense.gguf", n_embd=N_EMBD)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("imatrix") / "moe.gguf", n_embd=N_EMBD, n_expert=5)


def collect(path, tokens, *, n_batch=None, **options):
    """Decode tokens, and return the collected matrix."""
    collector = ImatrixCollector(**options)
    with (
        Model(path) as model,
        Context(model, cb_eval=collector, n_ctx=128, n_threads=1) as context,
    ):
        batch = Batch(64)
        step = n_batch or len(tokens)
        for start in range(0, len(tokens), step):
            batch.clear()
            batch.add(tokens[start : start + step], start, logits="all")
            context.decode(batch)
    return collector.imatrix(dataset="tokens", chunk_size=16)


def norm(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def rotated(x):
    """Rotate pairs of numbers by the position."""
    n, width = x.shape[0], x.shape[-1]
    angles = np.arange(n)[:, None, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    a, b = x[..., ::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., ::2] = a * np.cos(angles) - b * np.sin(angles)
    out[..., 1::2] = a * np.sin(angles) + b * np.cos(angles)
    return out


def inputs_of(path, tokens):
    """Compute a llama model, and return the inputs of each matrix."""
    with Gguf.open(path) as gguf:
        w = {name: t.data.astype(np.float64) for name, t in gguf.tensors.items()}
    inputs = {}

    def times(x, name):
        inputs[name] = x
        return x @ w[name].T

    x = w["token_embd.weight"][tokens]
    n = len(tokens)
    for i in range(2):
        name = f"blk.{i}.{{}}.weight".format
        h = norm(x)
        q, k, v = (times(h, name(f"attn_{one}")).reshape(n, N_HEAD, -1) for one in "qkv")
        scores = np.einsum("ihd,jhd->hij", rotated(q), rotated(k)) / np.sqrt(q.shape[-1])
        scores[:, np.triu_indices(n, 1)[0], np.triu_indices(n, 1)[1]] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("hij,jhd->ihd", weights, v).reshape(n, -1)
        x = x + times(attended, name("attn_output"))
        h = norm(x)
        gate, up = times(h, name("ffn_gate")), times(h, name("ffn_up"))
        x = x + times(gate / (1 + np.exp(-gate)) * up, name("ffn_down"))
    times(norm(x), "output.weight")
    return inputs


@pytest.mark.parametrize("n_batch", [None, 16, 7])
def test_the_sums_are_those_of_numpy(path, n_batch):
    expected = inputs_of(path, TOKENS)
    found = collect(path, TOKENS, n_batch=n_batch, process_output=True)
    assert set(found) == set(expected)
    for name, x in expected.items():
        sums, counts = found.squares[name].sums, found.squares[name].counts
        # Keys and values are kept as float16, and the errors grow from layer to layer.
        assert np.allclose(sums, (x**2).sum(0), rtol=0.02)
        assert counts.tolist() == [len(TOKENS)]
        assert np.allclose(found[name], (x**2).mean(0), rtol=0.02)
        assert (found[name].shape, found[name].dtype) == ((N_EMBD,), np.float32)
    first = expected["blk.0.attn_q.weight"]
    assert np.allclose(found["blk.0.attn_q.weight"], (first**2).mean(0), rtol=1e-4)


def test_the_output_is_skipped_by_default(path):
    found = collect(path, TOKENS)
    assert "output.weight" not in found
    assert len(found) == 14
    assert (found.chunk_count, found.chunk_size, found.datasets) == (4, 16, ["tokens"])
    assert repr(found) == "<Imatrix of 14 weights and 4 chunks>"


@pytest.mark.parametrize("n_batch", [None, 5])
def test_experts(mixture, n_batch):
    """Each token is routed to two experts, whose inputs are those of the router."""
    found = collect(mixture, TOKENS, n_batch=n_batch)
    for i in range(2):
        router = found.squares[f"blk.{i}.ffn_gate_inp.weight"]
        for one in ("gate", "up", "down"):
            entry = found.squares[f"blk.{i}.ffn_{one}_exps.weight"]
            assert entry.sums.shape == (5, N_EMBD)
            assert entry.counts.shape == (5,)
            assert entry.counts.sum() == 2 * len(TOKENS)
            assert (entry.counts > 0).sum() > 2
            if one != "down":
                assert np.allclose(entry.sums.sum(0), 2 * router.sums[0], rtol=1e-5)
    # The router alone chooses the experts: compute it for the first layer of one token.
    with Gguf.open(mixture) as gguf:
        weights = {name: one.data for name, one in gguf.tensors.items()}
    one = collect(mixture, TOKENS[:1]).squares
    h = np.sqrt(one["blk.0.ffn_gate_inp.weight"].sums[0])
    x = weights["token_embd.weight"][TOKENS[:1]].astype(np.float64)
    v = norm(x) @ weights["blk.0.attn_v.weight"].T  # a single token attends only to itself
    x = norm(x + v @ weights["blk.0.attn_output.weight"].T)
    assert np.allclose(np.abs(x[0]), h, rtol=0.02, atol=1e-3)
    chosen = np.argsort(x[0] @ weights["blk.0.ffn_gate_inp.weight"].T)[-2:]
    assert sorted(np.flatnonzero(one["blk.0.ffn_up_exps.weight"].counts)) == sorted(chosen)


def test_an_expert_without_tokens_has_ones(mixture):
    found = collect(mixture, TOKENS[:1])
    name = "blk.0.ffn_up_exps.weight"
    unused = found.squares[name].counts == 0
    assert unused.sum() == 3
    assert (found[name][unused] == 1).all()
    assert (found[name][~unused] != 1).any()


def test_saved_and_opened(mixture, tmp_path):
    found = collect(mixture, TOKENS)
    found.save(tmp_path / "x.gguf")
    opened = Imatrix.open(tmp_path / "x.gguf")
    assert (opened.datasets, opened.chunk_count, opened.chunk_size) == (["tokens"], 4, 16)
    assert opened.path == tmp_path / "x.gguf"
    assert set(opened) == set(found)
    for name, entry in found.squares.items():
        assert np.array_equal(opened.squares[name].counts, entry.counts)
        assert np.allclose(opened.squares[name].sums, entry.sums, rtol=1e-6)
        assert opened[name].shape == found[name].shape


def test_merging_two(path):
    """Two halves, each collected on its own."""
    halves = [collect(path, TOKENS[i : i + 32]) for i in (0, 32)]
    both = halves[0].merge(halves[1])
    name = "blk.1.ffn_down.weight"
    assert np.array_equal(both.squares[name].counts, [64])
    assert np.allclose(both[name], (halves[0][name] + halves[1][name]) / 2)
    assert both.datasets == ["tokens"] * 2
    assert both.chunk_count == 4
    assert halves[0].squares[name].counts == [32]
    halves[1].squares[name] = Squares(np.zeros((1, 3)), np.zeros(1, int))
    with pytest.raises(ArgumentError, match=r"\(1, 64\) in one matrix and \(1, 3\) in the other"):
        halves[0].merge(halves[1])


def test_computed_from_tokens(path):
    """Each chunk is decoded on its own; an incomplete one is ignored."""
    parts = []
    with Model(path) as model:
        found = compute_imatrix(
            model, TOKENS, chunk_size=20, dataset="x", progress=parts.append, process_output=True
        )
        assert parts == [1 / 3, 2 / 3, 1]
        assert (found.chunk_count, found.datasets) == (3, ["x"])
        expected = [inputs_of(path, TOKENS[i : i + 20]) for i in (0, 20, 40)]
        for name in found:
            x = np.concatenate([one[name] for one in expected])
            assert np.allclose(found[name], (x**2).mean(0), rtol=0.02)
        assert compute_imatrix(model, TOKENS, chunk_size=20, max_chunks=1).chunk_count == 1
        stopped = compute_imatrix(model, TOKENS, chunk_size=20, progress=lambda part: part < 0.5)
        assert stopped.chunk_count == 2
        for options in ({"chunk_size": 0}, {"max_chunks": 0}, {"chunk_size": 65}):
            with pytest.raises(ArgumentError):
                compute_imatrix(model, TOKENS, **options)


def test_computed_from_text(model):
    """With the built-in model, which has a vocabulary and a BOS token."""
    text = "The llama walks over the hill and looks at the river. " * 4
    found = compute_imatrix(model, text, chunk_size=16)
    assert found.chunk_count == len(model.vocab.tokenize(text)) // 16
    with pytest.raises(ArgumentError, match="less than one chunk of 512"):
        compute_imatrix(model, text)


def test_used(path, mixture, tmp_path):
    """The object and the file give the same result; types that need a matrix work."""
    for source, ftype in ((path, "Q4_0"), (mixture, "Q4_K_M")):
        found = collect(source, TOKENS)
        found.save(tmp_path / "x.gguf")
        quantize(source, tmp_path / "one.gguf", ftype, imatrix=found)
        quantize(source, tmp_path / "two.gguf", ftype, imatrix=tmp_path / "x.gguf")
        quantize(source, tmp_path / "none.gguf", ftype)
        with (
            Gguf.open(tmp_path / "one.gguf") as one,
            Gguf.open(tmp_path / "two.gguf") as two,
            Gguf.open(tmp_path / "none.gguf") as none,
        ):
            assert one.hash() == two.hash() != none.hash()
            assert one["quantize.imatrix.dataset"] == "tokens"
            assert one["quantize.imatrix.chunks_count"] == 4
            assert "quantize.imatrix.file" not in one
            assert two["quantize.imatrix.file"] == str(tmp_path / "x.gguf")[:127]


def test_sums_that_overflow():
    one = Imatrix({"a": Squares(np.full((1, 2), 3e38, np.float32), np.array([1]))})
    with pytest.raises(ArgumentError, match="sums of 'a' exceed float32"):
        one.merge(one)


def test_the_older_format(tmp_path):
    file = tmp_path / "x.dat"
    entries = {"a.weight": (4, [4, 8]), "b.weight": (0, [1, 2, 3])}
    file.write_bytes(legacy(entries, n_chunks=9, dataset="text.txt"))
    found = Imatrix.open(file)
    assert found["a.weight"].tolist() == [1, 2]
    assert found["b.weight"].tolist() == [1, 2, 3]
    assert (found.chunk_count, found.datasets) == (9, ["text.txt"])


def test_other_files(path, tmp_path):
    file = tmp_path / "x.dat"
    whole = legacy({"a.weight": (4, [4, 8])}, dataset="x")
    for content in (b"", b"\0\0\0\0", b"\xff\xff\xff\xff", whole[:-1], whole[:20], b"text" * 9):
        file.write_bytes(content)
        with pytest.raises(GgufError, match=r"x\.dat"):
            Imatrix.open(file)
    for n_values in (-1, -2, -(2**31)):  # from the end, for numpy
        file.write_bytes(struct.pack("<iibii", 2**31 - 1, 1, 97, 4, n_values) + bytes(400))
        with pytest.raises(GgufError, match=f"it has {n_values} numbers"):
            Imatrix.open(file)
    file.write_bytes(struct.pack("<ii", 1, -5) + bytes(100))
    with pytest.raises(GgufError):
        Imatrix.open(file)
    with pytest.raises(GgufError, match="not an importance matrix"):
        Imatrix.open(path)
    with pytest.raises(ModelNotFoundError):
        Imatrix.open(tmp_path / "none")
    with Gguf.new() as gguf:
        gguf.add_tensor("a.in_sum2", np.ones(3, np.float32))
        gguf.write(file)
        with pytest.raises(GgufError, match="needs sums and counts"):
            Imatrix.open(file)
        gguf.add_tensor("a.counts", np.ones(2, np.float32))
        gguf.write(file)
        with pytest.raises(GgufError, match="do not match"):
            Imatrix.open(file)
        for counts in ([np.nan], [np.inf], [1e30], [-1e30]):
            gguf.replace_tensor("a.counts", np.float32(counts))
            gguf.write(file)
            with pytest.raises(GgufError, match="invalid numbers in the sums or counts"):
                Imatrix.open(file)
        gguf.replace_tensor("a.counts", np.ones(1, np.float32))
        gguf["imatrix.chunk_count"] = "x"
        gguf.write(file)
        with pytest.raises(GgufError, match="metadata"):
            Imatrix.open(file)


def test_two_models_with_one_collector(path, tmp_path):
    from llamacffi import ContextError

    collector = ImatrixCollector()
    other = write_llama(tmp_path / "other.gguf", n_embd=32)
    for source, error in ((path, None), (other, ContextError)):
        with (
            Model(source) as model,
            Context(model, cb_eval=collector, n_ctx=32, n_threads=1) as context,
        ):
            batch = Batch(4)
            batch.add([1, 2])
            if error is None:
                context.decode(batch)
            else:
                with pytest.raises(error, match="use a collector with one model only"):
                    context.decode(batch)
