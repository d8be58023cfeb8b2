"""Saved states that do not fit, are damaged, or are llama.cpp's own; and files of them."""

from __future__ import annotations

import json
import os
import struct
import zlib

import numpy as np
import pytest

from llamacffi import (
    Adapter,
    ArgumentError,
    Batch,
    Context,
    ControlVector,
    Gguf,
    LoadError,
    Model,
    ModelNotFoundError,
    StateError,
    ffi,
    lib,
    state_info,
)
from llamacffi.context.state_format import HEADER, VERSION
from tests.facade import loras

TOKENS = [(7 * i) % 90 + 3 for i in range(20)]
# Sums in single precision, so that their order does not matter.
EXACT = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled"}


def decode(context, tokens, pos=0, seq_id=0):
    batch = Batch(64)
    batch.add(tokens, pos=pos, seq_ids=(seq_id,))
    context.decode(batch)
    return context.logits()


@pytest.fixture
def saved(random_context):
    """A context of a llama with some tokens, its state, and that of its sequence."""
    context = random_context("llama", n_seq_max=2)
    decode(context, TOKENS)
    return context, context.save_state(), context.save_state(seq_id=0)


def refuses(context, data, match, seq_id=None):
    """Check that a state is refused, and nothing has changed."""
    before = context.save_state()
    with pytest.raises(StateError, match=match):
        context.load_state(data, seq_id=seq_id)
    assert context.save_state() == before


def test_another_model_of_the_same_shape(saved, random_path, tmp_path):
    context, whole, one = saved
    with Gguf.open(random_path("llama")) as gguf:
        # All but one tensor are the same, and so is all that the file says.
        weight = gguf.tensors["blk.1.ffn_up.weight"].dequantize()
        gguf.replace_tensor("blk.1.ffn_up.weight", weight * 1.01)
        gguf.write(tmp_path / "other.gguf")
    with Model(tmp_path / "other.gguf") as model:
        other = Context(model, n_ctx=256, n_threads=1, n_seq_max=2)
        decode(other, [5])
        refuses(other, whole, r"belongs to another model, 'llama \?B")
        refuses(other, one, "belongs to another model", 0)
    del context


def test_a_copy_of_the_model_with_another_name(saved, random_path, tmp_path):
    _context, whole, _one = saved
    with Gguf.open(random_path("llama")) as gguf:
        gguf["general.name"] = "a copy"
        gguf.write(tmp_path / "copy.gguf")
    with Model(tmp_path / "copy.gguf") as model, Context(model, n_ctx=256, n_seq_max=2) as other:
        other.load_state(whole)
        assert other.memory.pos_max(0) == len(TOKENS) - 1


def test_models_of_another_kind(saved, random_context):
    _context, whole, one = saved
    for kind in ("mamba", "gpt2", "lfm2"):
        refuses(random_context(kind), whole, "belongs to another model")
        refuses(random_context(kind), one, "belongs to another model", 0)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"type_k": "q8_0"}, "saved with type_k=F16, but this context has Q8_0"),
        ({"type_v": "f32"}, "type_v=F16, but this context has F32"),
        ({"flash_attn_type": "disabled"}, "flash_attn=True, but this context has False"),
        ({"n_seq_max": 3}, "each of 2 sequences, but this context has a buffer for each of 3"),
        ({"kv_unified": True}, "each of 2 sequences, but this context has one buffer for all"),
        ({"rope_freq_base": 5000.0}, "rope_freq_base=0.0, but this context has 5000.0"),
    ],
)
def test_contexts_of_another_shape(saved, params, match):
    context, whole, one = saved
    with Context(
        context.model, **{"n_ctx": 256, "n_threads": 1, "n_seq_max": 2, **params}
    ) as other:
        decode(other, [5])
        refuses(other, whole, match)
        refuses(other, one, match, 0)


def test_a_recurrent_state_does_not_depend_on_the_cache(random_context):
    context = random_context("mamba")
    decode(context, TOKENS)
    saved = context.save_state(seq_id=0)
    expected = decode(context, [5], len(TOKENS))
    with Context(context.model, n_ctx=64, n_seq_max=4, type_k="q8_0", n_threads=1) as other:
        other.load_state(saved, seq_id=3)
        assert np.array_equal(decode(other, [5], len(TOKENS), 3), expected)


def changed(data, **identity):
    """Return a state that says something else of itself, and is not damaged."""
    magic, version, _crc, n_identity, n_tokens, n_bytes = HEADER.unpack_from(data)
    start = HEADER.size + n_identity
    text = json.dumps({**json.loads(data[HEADER.size : start]), **identity}).encode()
    head = HEADER.pack(magic, version, 0, len(text), n_tokens, n_bytes)
    rest = head[16:] + text + data[start:]
    return head[:12] + struct.pack("<I", zlib.crc32(rest)) + rest


def test_another_build(saved):
    context, whole, _one = saved
    ours = ffi.string(lib.ggml_commit()).decode()
    context.load_state(changed(whole))
    refuses(
        context,
        changed(whole, **{"llama.cpp": "0123456"}),
        f"saved by llama.cpp 0123456, but this is {ours}",
    )


def test_other_adapters(saved, tmp_path):
    context, whole, one = saved
    path = loras.write_lora(tmp_path / "lora.gguf", {"blk.0.attn_q.weight": (64, 64)})
    adapter = Adapter(context.model, path)
    context.adapters = {adapter: 0.5}
    refuses(context, whole, "computed with no adapters, but this context has the adapters 0.5 x")
    refuses(context, one, "set the same ones first, or pass any_adapters=True", 0)
    with_adapter = context.save_state()
    context.load_state(whole, any_adapters=True)
    context.adapters = {adapter: 0.25}
    refuses(context, with_adapter, "with the adapters 0.5 x .* has the adapters 0.25 x")
    context.adapters = {Adapter(context.model, path): 0.5}  # the same, loaded again
    context.load_state(with_adapter)
    context.adapters = {adapter: 0.0}  # as none
    context.load_state(whole)
    context.control_vector = ControlVector.from_array(np.ones((1, 64)))
    refuses(context, whole, "with no control vector, but this context has the control vector 1 x")


def test_incomplete_states(saved):
    context, whole, one = saved
    for data, seq_id in ((whole, None), (one, 0)):
        for n in [*range(0, 60, 7), len(data) // 2, len(data) - 1]:
            refuses(context, data[:n], "incomplete|was not saved by llamacffi or llama.cpp", seq_id)
        refuses(context, data + b"\0", "incomplete", seq_id)


def test_damaged_states(saved):
    context, whole, one = saved
    random = np.random.default_rng(1)
    for data, seq_id in ((whole, None), (one, 0)):
        for at in [*range(HEADER.size), *random.integers(0, len(data), 100)]:
            bad = bytearray(data)
            bad[at] ^= 1 << random.integers(8)
            refuses(context, bytes(bad), "damaged|incomplete|was not saved|version", seq_id)


def test_another_version_of_the_format(saved):
    context, whole, _one = saved
    data = bytearray(whole)
    data[8] = VERSION + 1
    refuses(
        context,
        bytes(data),
        f"has version {VERSION + 1} .* reads version {VERSION}: save",
    )


@pytest.mark.parametrize(
    "identity",
    [
        {"seq_id": "0"},
        {"partial": 1},
        {"ends": {"x": 1}},
        {"ends": {"0": "1"}},
        {"ends": {"0": -1}},
        {"ends": [1]},
        {"params": None},
        {"n_ctx_seq": None},
        {"model": 5},
        {"adapters": 5},
    ],
)
def test_a_state_that_lies_about_itself(saved, identity):
    context, whole, _one = saved
    refuses(context, changed(whole, **identity), "its description is not valid")
    with pytest.raises(StateError):
        state_info(changed(whole, **identity))


def test_data_that_c_refuses_change_nothing(saved):
    """The header is right, and what is behind it is nonsense."""
    context, whole, one = saved
    for data, seq_id in ((whole, None), (one, 0)):
        start = len(data) - state_info(data).n_bytes
        for nonsense in (bytes(len(data) - start), b"\xff" * (len(data) - start)):
            bad = changed(data[:start] + nonsense, n_ctx_seq=10**6)  # it may be too large
            refuses(context, bad, "llama.cpp cannot load the state|its architecture", seq_id)
        bad = changed(data, n_ctx_seq=10**6, ends={"0": 5})
        refuses(context, bad, "sequences end at {0: 19} instead of {0: 5}", seq_id)


def test_a_state_that_is_too_large_changes_nothing(random_context):
    context = random_context("llama", n_ctx=512)
    batch = Batch(512)
    batch.add([5] * 512)
    context.decode(batch)
    whole, one = context.save_state(), context.save_state(seq_id=0)
    with Context(context.model, n_ctx=256, n_threads=1) as small:
        decode(small, TOKENS)
        refuses(small, whole, "it read 0 of [0-9]+ bytes; if it does not fit")
        refuses(small, one, "if it does not fit", 0)
        small.memory.clear()
        refuses(small, one, "if it does not fit", 0)


def test_no_room_beside_other_sequences(random_context):
    context = random_context("llama", n_seq_max=3, kv_unified=True)
    batch = Batch(200)
    batch.add([5] * 200, seq_ids=(0,))
    context.decode(batch)
    decode(context, [5, 6, 7], seq_id=1)
    one, snapshot = context.save_state(seq_id=0), context.snapshot(0)
    refuses(context, one, "if it does not fit", 1)
    before = context.save_state()
    with pytest.raises(StateError, match="if it does not fit"):
        context.restore(snapshot, seq_id=1)
    assert context.save_state() == before
    context.memory.remove(0)
    context.load_state(one, seq_id=1)
    assert context.memory.pos_max(1) == 199


def test_files_keep_the_tokens(saved, tmp_path):
    context, _whole, _one = saved
    path = tmp_path / "state"
    expected = decode(context, [5], len(TOKENS))
    context.memory.remove(0, len(TOKENS))
    for seq_id in (None, 0):
        context.save_file(path, TOKENS, seq_id=seq_id)
        assert context.load_file(path, seq_id=seq_id) == TOKENS
        assert np.array_equal(decode(context, [5], len(TOKENS)), expected)
        context.memory.remove(0, len(TOKENS))
        info = state_info(path)
        assert info.tokens == TOKENS
        assert info.of_one_sequence == (seq_id is not None)
        assert info.ends == {0: len(TOKENS) - 1}
        assert info.model == context.model.desc
        assert info.llama_cpp == ffi.string(lib.ggml_commit()).decode()
        assert info.params["type_k"] == "F16"
        assert not info.partial
    context.save_file(path, np.array([1, 2], np.int64))
    assert context.load_file(path) == [1, 2]
    context.save_file(path)
    assert context.load_file(str(path)) == []
    assert path.read_bytes() == context.save_state()  # one format
    assert os.listdir(tmp_path) == ["state"]


def test_a_partial_file(random_context, tmp_path):
    context = random_context("lfm2")
    decode(context, TOKENS)
    context.save_file(tmp_path / "state", TOKENS, seq_id=0, partial=True)
    expected = decode(context, [5], len(TOKENS))
    assert state_info(tmp_path / "state").partial
    assert context.load_file(tmp_path / "state", seq_id=0) == TOKENS
    assert np.array_equal(decode(context, [5], len(TOKENS)), expected)
    with pytest.raises(ArgumentError, match="cannot hold a partial state"):
        context.save_file(tmp_path / "x", partial=True, plain=True)


def test_files_that_cannot_be_used(saved, tmp_path):
    context, _whole, _one = saved
    with pytest.raises(ModelNotFoundError):
        context.load_file(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        context.save_file(tmp_path / "none" / "state")
    with pytest.raises(FileNotFoundError):
        context.save_file(tmp_path / "none" / "state", plain=True)
    with pytest.raises(LoadError):
        context.load_file(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArgumentError, match="is a pipe"):
        context.load_file(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    for use in (context.load_file, state_info):
        with pytest.raises(StateError, match=r"was not saved by .*: it has only 0 bytes"):
            use(tmp_path / "empty")
    (tmp_path / "text").write_text("this is no state at all, but a text")
    for use in (context.load_file, state_info):
        with pytest.raises(StateError, match="it begins with b'this is '"):
            use(tmp_path / "text")
    for tokens in (["x"], [1.5], "text", [[1, 2]]):
        with pytest.raises(TypeError):
            context.save_file(tmp_path / "x", tokens)
    with pytest.raises(ArgumentError):
        context.save_file(tmp_path / "x", [2**31])
    assert not (tmp_path / "x").exists()


def test_a_failed_write_leaves_the_old_file(saved, tmp_path):
    context, _whole, _one = saved
    path = tmp_path / "state"
    context.save_file(path, TOKENS)
    with pytest.raises(ArgumentError):
        context.save_file(path, seq_id=7)
    assert context.load_file(path) == TOKENS
    assert os.listdir(tmp_path) == ["state"]


def test_a_full_disk(saved, run_python, tmp_path):
    """As far as a limit for files is one: C does not see that its last bytes are lost."""
    context, _whole, _one = saved
    done = run_python(
        """
        import os, resource, signal, sys
        from llamacffi import Batch, Context, Model
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Model(sys.argv[1]) as model, Context(model, n_ctx=256, n_threads=1) as context:
            batch = Batch(20)
            batch.add(range(20))
            context.decode(batch)
            for plain in (False, True):
                context.save_file("first", plain=plain)
                size = os.path.getsize("first")
                for limit in (0, 5000, size - 1):
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                    try:
                        context.save_file("second", plain=plain)
                    except Exception as error:
                        print(type(error).__name__, isinstance(error, (OSError, ValueError)))
                    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
                    assert os.listdir() == ["first"], os.listdir()
        """,
        context.model.path,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["True"] * 6


@pytest.mark.parametrize("kind", ["llama", "mamba", "lfm2", "mimo2", "qwen2vl"])
def test_llama_cpps_own_files_both_ways(random_context, kind, tmp_path):
    context = random_context(kind, n_seq_max=2, **EXACT)
    decode(context, TOKENS)
    ours, theirs = os.fsencode(tmp_path / "ours"), os.fsencode(tmp_path / "theirs")
    tokens, count = ffi.new("llama_token[]", 100), ffi.new("size_t *")
    expected_state, expected = context.save_state(), decode(context, [5], len(TOKENS))
    context.load_state(expected_state)

    # All sequences.
    context.save_file(os.fsdecode(ours), TOKENS, plain=True)
    assert lib.llama_state_save_file(context.ptr, theirs, TOKENS, len(TOKENS))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    context.memory.clear()
    assert lib.llama_state_load_file(context.ptr, ours, tokens, 100, count)
    assert ffi.unpack(tokens, count[0]) == TOKENS
    context.memory.clear()
    assert context.load_file(tmp_path / "theirs") == TOKENS
    assert np.allclose(decode(context, [5], len(TOKENS)), expected, atol=1e-4)
    assert state_info(tmp_path / "theirs").tokens == TOKENS
    assert not state_info(tmp_path / "theirs").of_one_sequence
    with pytest.raises(ArgumentError, match="holds all sequences"):
        context.load_file(tmp_path / "theirs", seq_id=0)

    # One.
    context.load_state(expected_state)
    context.save_file(os.fsdecode(ours), TOKENS, plain=True, seq_id=0)
    assert lib.llama_state_seq_save_file(context.ptr, theirs, 0, TOKENS, len(TOKENS))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert context.load_file(tmp_path / "theirs", seq_id=1) == TOKENS
    assert np.allclose(decode(context, [5], len(TOKENS), 1), expected, atol=1e-4)
    assert state_info(tmp_path / "theirs").of_one_sequence
    with pytest.raises(ArgumentError, match="holds one sequence"):
        context.load_file(tmp_path / "theirs")


def test_llama_cpps_own_files_that_do_not_fit_change_nothing(saved, random_context, tmp_path):
    context, whole, _one = saved
    other = random_context("mamba")
    decode(other, TOKENS)
    paths = {None: tmp_path / "whole", 0: tmp_path / "one"}
    for seq_id, path in paths.items():
        other.save_file(path, TOKENS, plain=True, seq_id=seq_id)
        with pytest.raises(StateError):
            context.load_file(path, seq_id=seq_id)
        assert context.save_state() == whole
    with pytest.raises(StateError, match="its architecture is not 'llama'"):
        context.load_file(paths[None])
    context.save_file(paths[None], plain=True)
    with Context(context.model, n_ctx=256, n_threads=1) as small:  # one sequence, not two
        decode(small, [5])
        before = small.save_state()
        with pytest.raises(StateError) as info:
            small.load_file(paths[None])
        assert "n_stream mismatch" in "".join(info.value.__notes__)
        assert small.save_state() == before


@pytest.mark.parametrize("kind", ["llama", "mamba", "lfm2", "mimo2"])
def test_damaged_files_of_llama_cpps_own_never_crash(random_context, kind, run_python, tmp_path):
    """It has no checksum: some damage is found out, and the rest makes other numbers."""
    path = random_context(kind).model.path
    done = run_python(
        """
        import random, sys
        from pathlib import Path
        import numpy as np
        from llamacffi import Batch, Context, LlamaError, Model, StateError
        rng = random.Random(1)
        batch, more = Batch(20), Batch(1)
        batch.add(range(20))
        def go_on():
            more.clear()
            more.add([5], pos=context.memory.next_pos(0))
            context.decode(more)
            return context.logits()
        with Model(sys.argv[1]) as model, Context(
            model, n_ctx=64, n_threads=1, n_seq_max=2,
            flash_attn_type="disabled", type_k="f32", type_v="f32",
        ) as context:
            context.decode(batch)
            before = context.save_state()
            expected = go_on()
            context.load_state(before)
            found = taken = 0
            for seq_id in (None, 0):
                context.save_file("good", range(5), plain=True, seq_id=seq_id)
                good = Path("good").read_bytes()
                for n in range(300):
                    bad = bytearray(good)
                    if n % 4:
                        # Near the beginning are what C believes: counts, positions, sequences.
                        for _ in range(rng.randint(1, 4)):
                            at = rng.randrange(min(len(bad), 12 + 20 + 600))
                            bad[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
                    else:
                        del bad[rng.randrange(len(bad)):]
                    Path("bad").write_bytes(bad)
                    try:
                        context.load_file("bad", seq_id=seq_id)
                    except StateError:
                        found += 1
                        assert np.allclose(go_on(), expected, atol=1e-4), n
                    else:  # it must be usable, whatever it says
                        taken += 1
                        go_on()
                        context.save_state()
                    context.load_state(before)
            print(found, taken)
        """,
        path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert min(map(int, done.stdout.split())) > 50, done.stdout


def test_damaged_states_never_crash(random_context, run_python):
    """Of every kind of memory, at random places, in bytes and in files."""
    paths = [random_context(kind).model.path for kind in ("llama", "mamba", "lfm2", "mimo2")]
    done = run_python(
        """
        import random, sys
        from llamacffi import Batch, Context, Model, StateError
        rng = random.Random(2)
        batch = Batch(20)
        batch.add(range(20))
        for path in sys.argv[1:]:
            with Model(path) as model, Context(model, n_ctx=64, n_threads=1) as context:
                context.decode(batch)
                for seq_id in (None, 0):
                    good = context.save_state(seq_id=seq_id)
                    for n in range(200):
                        bad = bytearray(good)
                        if n % 3:
                            at = rng.randrange(len(bad))
                            bad[at : at + rng.randint(1, 9)] = rng.randbytes(rng.randint(0, 9))
                        else:
                            del bad[rng.randrange(len(bad)):]
                        try:
                            context.load_state(bad, seq_id=seq_id)
                        except StateError:
                            continue
                        assert bad == good
                    assert context.save_state(seq_id=seq_id) == good
        print("done")
        """,
        *paths,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "done\n"
