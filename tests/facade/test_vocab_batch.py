"""Batches of texts, many threads at once, and words of any length."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacffi import ArgumentError, ClosedError, Model, TokenizeError, lib, log
from tests.facade.vocabularies import write_vocab

# One of each kind that there is.
KINDS = ["llama-spm", "llama-bpe", "deepseek-coder", "bert-bge", "nomic-bert-moe"]
THREADS = [1, 2, 8]


def texts(n: int) -> list[str]:
    return [f"The {i}th llama 🦙 says {'na ' * (i % 50)}\n" * (i % 7) for i in range(n)]


@pytest.mark.parametrize("n_threads", THREADS)
@pytest.mark.parametrize("name", KINDS)
def test_a_batch_gives_the_same_as_each_text_alone(vocabularies, name, n_threads):
    vocab, batch = vocabularies[name], texts(60)
    for flags in ({}, {"add_special": False}, {"parse_special": True}):
        expected = [vocab.tokenize(text, **flags) for text in batch]
        assert vocab.tokenize_batch(batch, n_threads=n_threads, **flags) == expected
        arrays = vocab.tokenize_batch_array(batch, n_threads=n_threads, **flags)
        assert [array.tolist() for array in arrays] == expected
        assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    for flags in ({}, {"unparse_special": True}, {"remove_special": True}, {"exact": False}):
        singles = [vocab.detokenize(ids, **flags) for ids in expected]
        assert vocab.detokenize_batch(expected, n_threads=n_threads, **flags) == singles
        assert vocab.detokenize_batch(arrays, n_threads=n_threads, **flags) == singles


@settings(max_examples=40, deadline=None)
@given(
    batch=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=20),
    n_threads=st.integers(1, 5),
)
def test_any_batch_gives_the_same_as_each_text_alone(model, batch, n_threads):
    vocab = model.vocab
    ids = vocab.tokenize_batch(batch, n_threads=n_threads)
    assert ids == [vocab.tokenize(text) for text in batch]
    assert vocab.detokenize_batch(ids, n_threads=n_threads) == [*map(vocab.detokenize, ids)]


def test_types_of_batches(model):
    vocab = model.vocab
    assert vocab.tokenize_batch([]) == vocab.tokenize_batch_array([]) == []
    assert vocab.detokenize_batch([]) == []
    mixed = ["a", b"a", bytearray(b"a"), memoryview(b"a")]
    assert vocab.tokenize_batch(one for one in mixed) == [vocab.tokenize("a")] * 4
    assert vocab.detokenize_batch([[1, 5], (5,), np.array([5], np.uint8), range(0)])[2:] == [
        vocab.detokenize([5]),
        "",
    ]
    for texts in ("abc", b"abc"):
        with pytest.raises(TypeError, match="a sequence of texts"):
            vocab.tokenize_batch(texts)
    with pytest.raises(TypeError, match="text must be str or bytes, not int"):
        vocab.tokenize_batch(["a", 5])
    with pytest.raises(TypeError, match="token must be an integer, not 'a'"):
        vocab.detokenize_batch([[1], ["a"]])


@pytest.mark.parametrize("n_threads", [0, -1, 2**31])
def test_threads_out_of_range(model, n_threads):
    for call in (model.vocab.tokenize_batch, model.vocab.detokenize_batch):
        with pytest.raises(ArgumentError, match=f"n_threads must be .*, not {n_threads}$"):
            call([], n_threads=n_threads)
        with pytest.raises(TypeError):
            call([], n_threads=1.5)


@pytest.mark.parametrize("n_threads", THREADS)
def test_the_first_text_that_fails_is_reported(tmp_path, n_threads):
    """Regardless of the threads; the vocabulary still works afterwards."""
    path = write_vocab(tmp_path / "no-bytes.gguf", "llama", ["▁", "a", "b"])
    with Model(path, vocab_only=True) as model:
        vocab = model.vocab
        batch = [*["ab " * 40] * 300, "abc", *["ab " * 40] * 300, "abc"]
        flags = {"add_special": False, "n_threads": n_threads}
        for _ in range(5):
            with pytest.raises(TokenizeError, match=r"text 300: .*no token for a part") as caught:
                vocab.tokenize_batch(batch, **flags)
            assert caught.value.index == 300
        assert vocab.tokenize_batch(["ab"], **flags) == [[0, 1, 2]]
        with pytest.raises(TokenizeError, match=r"text 300: .* not UTF-8") as caught:
            vocab.tokenize_batch([*batch[:300], b"\xf4\x90\x80\x80"], **flags)
        assert caught.value.index == 300


def test_a_text_that_is_not_unicode_is_reported(vocabularies):
    vocab = vocabularies["gpt-2"]
    with pytest.raises(TokenizeError, match=r"text 1: .*surrogate at index 2") as caught:
        vocab.tokenize_batch(["a", "bc\ud800"])
    assert caught.value.index == 1


def test_an_assertion_that_fails_in_a_thread_is_an_error(run_python, tmp_path):
    """The threads have their own guard; without it, the process would end."""
    path = write_vocab(tmp_path / "no-bos.gguf", "llama", ["▁a"])
    result = run_python(
        """
        import sys
        from llamacffi import Model, NativeError, TokenizeError, ffi, lib
        vocab = Model(sys.argv[1], vocab_only=True).vocab
        try:
            lib.llama_tokenize(vocab.ptr, b"a", 1, ffi.NULL, 0, True, False)
        except NativeError as error:
            assert "GGML_ASSERT" in str(error)
        try:
            vocab.tokenize_batch(["a" * 20000] * 50, n_threads=4)
        except TokenizeError as error:
            print(error.index, "bos" in str(error))
        print(vocab.tokenize_batch(["a", "aa"][:1] * 3, add_special=False))
        """,
        path,
    )
    assert (result.returncode, result.stdout) == (0, "0 True\n[[0], [0], [0]]\n"), result.stderr


def test_threads_log_for_the_caller(vocabularies):
    """llama.cpp warns of a second BOS; the lines count as logged by the calling thread."""
    vocab = vocabularies["llama-bpe"]
    bos = vocab.piece(vocab.bos).decode()
    batch = [bos + "a " * 20_000] * 4
    with log.capture_logs("WARNING", thread=True) as lines:
        vocab.tokenize_batch(batch, parse_special=True, n_threads=4)
    assert len(lines) == 4
    assert all("BOS" in line.text for line in lines)


def test_many_small_texts_and_a_large_one(vocabularies):
    vocab = vocabularies["llama-bpe"]
    small = [f"line {i}" for i in range(30_000)]
    large = "\n".join(small)
    ids = vocab.tokenize_batch([*small, large, *small], add_special=False)
    assert ids[:30_000] == ids[30_001:]
    assert ids[30_000] == vocab.tokenize(large, add_special=False)
    assert vocab.detokenize_batch(ids) == [*small, large, *small]


LONG_WORDS = """
    import sys, threading
    from llamacffi import Model
    vocab = Model(sys.argv[1], vocab_only=True).vocab
    text = sys.argv[2] * 60_000

    def work():
        ids = vocab.tokenize(text, add_special=False)
        assert vocab.detokenize(ids) == text
        assert vocab.n_tokens(text, add_special=False) == len(ids)
        batch = vocab.tokenize_batch(["a", text, "b"], add_special=False, n_threads=2)
        assert batch[1] == ids
        print(len(ids))

    work()
    threading.stack_size(256 * 1024)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
"""


@pytest.mark.parametrize(
    ("name", "character"),
    [("deepseek-coder", "a"), ("deepseek-llm", " "), ("gpt-neox", "1"), ("llama-bpe", "中")],
)
def test_a_word_may_be_as_long_as_the_text(run_python, llama_cpp, name, character):
    """llama.cpp splits text with std::regex, which recurses for each character of a match."""
    path = llama_cpp / "models" / f"ggml-vocab-{name}.gguf"
    result = run_python(LONG_WORDS, path, character)
    assert result.returncode == 0, result.stderr
    first, second = map(int, result.stdout.split())
    assert first == second > 100


def test_only_recursive_tokenizers_need_stack(vocabularies):
    """Those that llama.cpp splits with its own code do not need it, and are faster."""
    need = {name: lib.llamacffi_stack_per_byte(vocab.ptr) for name, vocab in vocabularies.items()}
    recurse = {"aquila", "deepseek-coder", "deepseek-llm", "falcon", "gpt-neox"}
    assert {name for name, stack in need.items() if stack} == recurse
    assert all(100 < need[name] < 20_000 for name in recurse)


def test_no_memory_for_the_stack_is_an_error(run_python, llama_cpp):
    result = run_python(
        """
        import resource, sys
        from llamacffi import Model, TokenizeError
        vocab = Model(sys.argv[1], vocab_only=True).vocab
        vocab.tokenize_batch(["a " * 1000], n_threads=1)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, -1))
        for call in (vocab.tokenize, lambda text: vocab.tokenize_batch([text])):
            try:
                call("a" * 2_000_000)  # cannot be split
            except TokenizeError as error:
                print("no address space for a stack of" in str(error))
        """,
        llama_cpp / "models" / "ggml-vocab-deepseek-coder.gguf",
    )
    assert (result.returncode, result.stdout) == (0, "True\nTrue\n"), result.stderr


@pytest.mark.parametrize("name", KINDS)
def test_threads_tokenize_at_once(vocabularies, name):
    vocab, batch = vocabularies[name], texts(64)
    ids = [vocab.tokenize(text) for text in batch]
    serial = [vocab.detokenize(one) for one in ids]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(vocab.tokenize, batch)) == ids
            assert list(pool.map(vocab.detokenize, ids)) == serial
            batches = [pool.submit(vocab.tokenize_batch, batch, n_threads=2) for _ in range(4)]
            assert all(one.result() == ids for one in batches)


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2", "bert-bge"])
def test_a_model_may_be_closed_while_threads_tokenize(llama_cpp, name):
    """Each call returns the right result or says that the model is closed."""
    path = llama_cpp / "models" / f"ggml-vocab-{name}.gguf"
    batch = texts(20)
    for _ in range(3):
        model = Model(path, vocab_only=True)
        vocab = model.vocab
        expected = [vocab.tokenize(text) for text in batch]
        started, finished = threading.Barrier(9), []

        def work() -> None:
            started.wait()  # noqa: B023
            try:
                while True:
                    assert vocab.tokenize_batch(batch, n_threads=2) == expected  # noqa: B023
                    assert [*map(vocab.tokenize, batch)] == expected  # noqa: B023
                    assert vocab.detokenize_batch(expected)  # noqa: B023
            except ClosedError:
                finished.append(True)  # noqa: B023

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        started.wait()
        vocab.tokenize_batch(batch)
        model.close()
        for thread in threads:
            thread.join()
        assert len(finished) == 8


def test_other_threads_keep_running(vocabularies):
    """The call releases the GIL, once."""
    vocab = vocabularies["llama-spm"]
    batch = ["The quick brown llama. " * 8_000] * 4
    done = threading.Event()

    def work() -> None:
        vocab.tokenize_batch(batch, n_threads=1)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    turns = 0
    while not done.is_set():
        vocab.tokenize("here")
        turns += 1
    thread.join()
    assert turns > 100
