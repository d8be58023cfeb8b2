"""The examples of other libraries: built from scratch, and computing with our contexts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

EXAMPLES = {"cffi_module": "greedy_loop", "cpp_extension": "logit_reader"}
START = """
    import numpy as np
    import llamacffi
    from llamacffi import *

    model = Model(demo.path(), n_gpu_layers=0)
    context = Context(model, n_ctx=128, n_threads=1)
    batch = Batch.from_tokens(model.vocab.tokenize("The old tree"))
"""


@pytest.fixture(params=EXAMPLES)
def example(request, built) -> tuple[Path, str]:
    """One of them: the directory of its package, and its name."""
    return built(request.param), EXAMPLES[request.param]


@pytest.fixture
def run(run_python):
    """Run code that may import what is in a directory."""

    def in_directory(directory: Path, code: str) -> str:
        result = run_python(code, env={**os.environ, "PYTHONPATH": str(directory)})
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        return str(result.stdout)

    return in_directory


def test_the_types_of_a_module_of_cffi_are_ours(run, built):
    code = (
        START
        + """
    from greedy_loop._loop import ffi as theirs

    for name in ("struct llama_context *", "struct llama_batch", "llama_seq_id",
                 "ggml_backend_dev_t", "struct ggml_tensor", "mtmd_context *"):
        assert theirs.typeof(name) is ffi.typeof(name), name
    for name in ("enum ggml_type", "enum mtmd_input_chunk_type"):  # CFFI makes those anew
        assert theirs.typeof(name).elements == ffi.typeof(name).elements, name
    assert theirs.typeof(context.ptr) is theirs.typeof("struct llama_context *")
    """
    )
    run(built("cffi_module"), code)


def test_a_module_of_cffi_computes_with_our_context(run, built):
    code = (
        START
        + """
    import greedy_loop
    from greedy_loop import _loop

    sampler = SamplerChain(Greedy())
    tokens = [token.id for token in generate(context, "The llama", sampler=sampler, max_tokens=24)]
    expected = model.vocab.detokenize(tokens)
    assert greedy_loop.generate(context, "The llama", 24) == expected

    assert _loop.lib.llama_model_n_embd(model.ptr) == model.n_embd  # ours, and so guarded
    try:
        _loop.lib.llama_vocab_get_text(model.vocab.ptr, 10**8)
    except NativeError:
        print("guarded")
    try:
        _loop.lib.greedy_loop(model.ptr, 0, ffi.NULL, 0)
    except TypeError:
        print("typed")
    context.close()
    try:
        greedy_loop.generate(context, "The llama", 24)
    except ClosedError:
        print("closed")
    """
    )
    assert run(built("cffi_module"), code).split() == ["guarded", "typed", "closed"]


def test_an_extension_reads_our_logits_in_place(run, built):
    code = (
        START
        + """
    import logit_reader

    context.decode(batch)
    scores = context.logits().astype(float)
    p = np.exp(scores - scores.max())
    p /= p.sum()
    assert np.isclose(logit_reader.entropy(context), -(p * np.log(p)).sum(), rtol=1e-9)

    view = context.logits_view()
    where = logit_reader._reader.address(context.address, -1)
    assert where == view.__array_interface__["data"][0]
    """
    )
    run(built("cpp_extension"), code)


def test_an_extension_says_what_is_wrong(run, built):
    code = (
        START
        + """
    import logit_reader

    context.decode(batch)
    context.close()
    other = Context(model, n_ctx=128, n_threads=1)
    other.decode(batch)
    for call in (
        lambda: logit_reader.entropy(other, 0),
        lambda: logit_reader.entropy(context),
        lambda: logit_reader._reader.entropy(0, -1),
        lambda: logit_reader._reader.entropy("0", -1),
    ):
        try:
            call()
        except Exception as error:
            print(type(error).__name__)
    """
    )
    printed = run(built("cpp_extension"), code).split()
    assert printed == ["IndexError", "ClosedError", "ValueError", "TypeError"]


def test_the_libraries_are_loaded_once(run, example):
    """Though nothing tells the loader where they are, but their names."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    directory, name = example
    code = f"""
    import {name}, llamacffi, pathlib
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    loaded = {{line.split()[-1] for line in lines if "/libllama" in line}}
    assert loaded == {{str(llamacffi.library_dir() / "libllama.so")}}, loaded
    """
    run(directory, code)


def test_one_that_was_built_for_another_llama_cpp_is_refused(run_python, example, tmp_path):
    from llamacffi import ffi, lib

    directory, name = example
    ours = ffi.string(lib.llamacffi_built_commit())
    copy = tmp_path / name
    copy.mkdir()
    for path in (directory / name).iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes().replace(ours, b"f" * len(ours)))
    result = run_python(f"import {name}", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert ours.decode() in result.stderr
    assert "f" * len(ours) in result.stderr
