"""A failed check of llama.cpp is a Python exception, and its objects go on working."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import timeit
from concurrent.futures import ThreadPoolExecutor

import pytest

from llamacffi import NativeError, ffi, lib

# Each runs in a process of its own: without the guard it would be the end of that process.
SETUP = """
    import sys
    import llamacffi
    from llamacffi import NativeError, ffi, lib
    model = llamacffi.Model(sys.argv[1])
    context = llamacffi.Context(model, n_ctx=64, n_batch=8, n_seq_max=2)
    vocab = model.vocab.ptr

    def raises(function, *args):
        try:
            function(*args)
        except NativeError as error:
            assert error.function in str(error), error
            print(error)
        else:
            raise SystemExit("nothing was raised")

    def still_works():
        context.memory.clear()
        greedy = llamacffi.SamplerChain.default(temp=0)
        generation = llamacffi.generate(context, "The llama", sampler=greedy, max_tokens=3)
        assert len(list(generation)) == 3
        print("alive")
"""

MISUSE = {
    "a batch larger than n_batch": """
        batch = llamacffi.Batch(9)
        batch.add(range(9), logits="all")
        raises(lib.llama_decode, context.ptr, batch.ptr[0])
    """,
    "the text of a token out of range": """
        raises(lib.llama_vocab_get_text, vocab, 10**8)
    """,
    "the piece of a token out of range": """
        raises(lib.llama_token_to_piece, vocab, 10**8, ffi.new("char[]", 9), 9, 0, True)
    """,
    "a grammar fed a token it forbids": """
        grammar = lib.llama_sampler_init_grammar(vocab, b'root ::= "x"', b"root")
        assert grammar != ffi.NULL
        raises(lib.llama_sampler_accept, grammar, model.vocab.tokenize(" llama")[-1])
        lib.llama_sampler_free(grammar)
    """,
    "sampling an output that does not exist": """
        chain = llamacffi.SamplerChain(llamacffi.Greedy())
        raises(lib.llama_sampler_sample, chain.ptr, context.ptr, 5)
    """,
    "copying to sequence 999": """
        raises(lib.llama_memory_seq_cp, lib.llama_get_memory(context.ptr), 0, 999, -1, -1)
    """,
    "a tensor in a full ggml context": """
        params = ffi.new("struct ggml_init_params *", {"mem_size": 512})
        ggml = lib.ggml_init(params[0])
        raises(lib.ggml_new_tensor_1d, ggml, lib.GGML_TYPE_F32, 10**6)
        lib.ggml_free(ggml)
    """,
    "a missing key in gguf": """
        gguf = lib.gguf_init_empty()
        raises(lib.gguf_get_val_u32, gguf, -1)
        lib.gguf_set_val_str(gguf, b"a", b"b")
        raises(lib.gguf_get_val_u32, gguf, 0)  # of another type
        lib.gguf_free(gguf)
    """,
    "a backend that does not exist": """
        raises(lib.ggml_backend_reg_get, 10**6)
    """,
    "a call whose array argument is on the heap": """
        raises(lib.ggml_new_tensor, ffi.NULL, lib.GGML_TYPE_F32, 1000, [1] * 1000)
    """,
}


@pytest.mark.parametrize("misuse", MISUSE.values(), ids=MISUSE.keys())
def test_misuse_raises_and_the_objects_go_on(run_python, demo_path, misuse):
    code = "\n".join(line[4:] for line in SETUP.splitlines())
    code += "\n".join(line[8:] for line in misuse.splitlines()) + "\nstill_works()"
    result = run_python(code, demo_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("alive\n")


def test_an_exception_in_a_callback_does_not_cross_c(run_python, demo_path):
    """Python -> C -> Python -> C: the inner failure is raised in the callback, then by the load."""
    result = run_python(
        """
        import sys, llamacffi
        from llamacffi import lib

        def progress(part):
            lib.ggml_backend_reg_get(10**6)

        try:
            llamacffi.Model(sys.argv[1], progress=progress)
        except llamacffi.NativeError as error:
            assert error.function == "ggml_backend_reg_get"
        else:
            raise SystemExit("nothing was raised")
        llamacffi.Model(sys.argv[1], progress=lambda part: lib.llama_max_devices() and None)
        print("alive")
        """,
        demo_path,
    )
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr


def test_a_guarded_function_that_c_calls_throws_into_c(run_python, demo_path):
    """Called from C, a guard stands aside: llama.cpp's own handler gets the exception."""
    result = run_python(
        """
        import sys, llamacffi
        from llamacffi import ffi, lib

        llamacffi.backend.load()
        params = ffi.new("struct llama_model_params *", lib.llama_model_default_params())
        # Its first integer argument is then the user data: an index that does not exist.
        params.progress_callback = ffi.cast(
            "llama_progress_callback", ffi.addressof(lib, "ggml_backend_reg_get")
        )
        params.progress_callback_user_data = ffi.cast("void *", 10**6)
        model = lib.llama_model_load_from_file(sys.argv[1].encode(), params[0])
        assert model == ffi.NULL
        lib.llama_max_devices()  # nothing is left over to be raised
        print("alive")
        """,
        demo_path,
    )
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr


def test_threads_get_their_own_failures():
    def provoke(number: int) -> list[str]:
        messages = []
        gguf = lib.gguf_init_empty()
        function, *args = (
            (lib.ggml_backend_reg_get, 10**6 + number)
            if number % 2
            else (lib.gguf_get_kv_type, gguf, 10**6 + number)
        )
        for _ in range(200):
            with pytest.raises(NativeError) as caught:
                function(*args)
            messages.append(caught.value.function)
            assert lib.llama_max_devices() > 0
        lib.gguf_free(gguf)
        return messages

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(provoke, range(8)))
    expected = ["gguf_get_kv_type", "ggml_backend_reg_get"]
    assert [set(messages) for messages in results] == [{expected[i % 2]} for i in range(8)]


def test_a_call_through_a_function_pointer_is_raised_by_the_next_call():
    """CFFI makes such calls without our code at their end; the failure waits, it is not lost."""
    pointer = ffi.addressof(lib, "ggml_backend_reg_get")
    assert pointer(10**6) == ffi.NULL
    with pytest.raises(NativeError, match="ggml_backend_reg_get"):
        lib.llama_max_devices()
    assert lib.llama_max_devices() > 0


def test_an_abort_outside_of_any_guard_says_why_before_it_ends_the_process(run_python):
    result = run_python(
        """
        from llamacffi import ffi, lib
        text = ffi.new("char[]", b"the reason is %s")
        lib.ggml_abort(b"some-file.c", 7, text, ffi.new("char[]", b"known"))
        """
    )
    assert result.returncode == -signal.SIGABRT
    assert "some-file.c:7: the reason is known" in result.stderr


def test_a_function_of_a_backend_needs_the_backend(run_python):
    result = run_python(
        """
        from llamacffi import NativeError, backend, lib
        try:
            lib.ggml_cpu_has_avx()
        except NativeError as error:
            assert "backend" in str(error)
        else:
            raise SystemExit("nothing was raised")
        backend.load()
        print(lib.ggml_cpu_has_avx() in (0, 1))
        """
    )
    assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


def test_functions_that_no_library_has_are_reported_and_raise(run_python):
    from llamacffi._generated.exports import LATE, UNEXPORTED

    assert "ggml_cpu_has_avx" in LATE
    for name in UNEXPORTED:
        result = run_python(
            f"""
            from llamacffi import NativeError, backend, ffi, lib
            backend.load()
            function = lib.{name}
            arguments = [ffi.cast(one, 0) for one in ffi.typeof(function).args]
            try:
                function(*arguments)
            except NativeError as error:
                print("no loaded library has" in str(error))
            """
        )
        assert (result.returncode, result.stdout) == (0, "True\n"), result.stderr


def test_the_message_names_function_and_place_without_the_path_of_the_build():
    with pytest.raises(NativeError) as caught:
        lib.ggml_backend_reg_get(10**6)
    message = str(caught.value)
    assert message.startswith("ggml_backend_reg_get: ggml/src/ggml-backend-reg.cpp:")
    assert "GGML_ASSERT(index < ggml_backend_reg_count()) failed" in message


@pytest.mark.no_asan
def test_the_guard_costs_little():
    """The same call with and without a guard, alternately; the quickest of each, in ns."""
    calls = 50_000
    guarded, plain = lib.llama_max_devices, lib.llamacffi_log_count
    pairs = [[timeit.timeit(one, number=calls) for one in (guarded, plain)] for _ in range(30)]
    quickest = [min(column) / calls * 1e9 for column in zip(*pairs, strict=True)]
    assert quickest[0] - quickest[1] < 15, quickest


def test_a_libffi_callback_is_no_gap_in_the_guard(run_python, demo_path):
    """A plain `ffi.callback` comes around our trampolines; calls in it have guards all the same."""
    result = run_python(
        """
        import sys, llamacffi
        from llamacffi import NativeError, ffi, lib

        raised = []

        @ffi.callback("bool(struct ggml_tensor *, bool, void *)")
        def on_tensor(tensor, ask, data):
            try:
                lib.ggml_backend_reg_get(10**6)
            except NativeError as error:
                raised.append(error)
            return True

        model = llamacffi.Model(sys.argv[1])
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_threads, params.cb_eval = 64, 1, on_tensor
        context = lib.llama_init_from_model(model.ptr, params)
        tokens = ffi.new("llama_token[]", [1, 2])
        assert lib.llama_decode(context, lib.llama_batch_get_one(tokens, 2)) == 0
        lib.llama_free(context)
        assert len(raised) > 2
        print("alive")
        """,
        demo_path,
    )
    assert (result.returncode, result.stdout) == (0, "alive\n"), result.stderr


# What ends a process, and what is said then: by default, and where a debugger is wanted.
ENDS = {
    "an assertion that comes around the guard": (
        """
        library = next(llamacffi.library_dir().glob("libggml-base*"))
        ctypes.CDLL(str(library)).ggml_abort(b"x.cpp", 1, b"the reason")
        """,
        ("x.cpp:1: the reason", "x.cpp:1: the reason"),
    ),
    "std::terminate": (
        """
        llamacffi.Model(sys.argv[1])  # backends are loaded, too
        ctypes.CDLL("libstdc++.so.6")._ZSt9terminatev()
        """,
        ("C++ code cannot go on: no exception is active", "terminate called without an active"),
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="the names of libraries are Linux's")
@pytest.mark.parametrize("wanted", [False, True], ids=["by default", "wanted"])
@pytest.mark.parametrize("end", ENDS)
def test_no_debugger_is_started(run_python, demo_path, tmp_path, end, wanted):
    """On what ends the process; ggml looks for gdb and lldb."""
    for name in ("gdb", "lldb"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho a debugger > {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    env = {key: value for key, value in os.environ.items() if key != "GGML_NO_BACKTRACE"}
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    if wanted:
        env["LLAMACFFI_BACKTRACE"] = "1"
    code, said = ENDS[end]
    code = f"import ctypes, sys, llamacffi\n{textwrap.dedent(code)}"
    result = run_python(code, demo_path, env=env)
    assert result.returncode == -signal.SIGABRT, result
    assert said[wanted] in result.stderr
    assert (tmp_path / "started").exists() == (wanted and end == "std::terminate")
    if not wanted:
        frames = [line for line in result.stderr.splitlines() if "(+0x" in line or "bt -" in line]
        assert not frames


def test_our_own_functions_have_guards_too():
    with pytest.raises(NativeError, match="llamacffi_check_regex"):
        lib.llamacffi_check_regex(b"(")
