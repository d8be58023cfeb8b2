"""A thread whose stack is too small for llama.cpp hears so; the process does not end."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("kib", [64, 128, 252])
def test_a_small_stack_is_told(run_python, demo_path, kib):
    code = """
        import sys, threading
        from llamacffi import *
        path, kib = sys.argv[1], int(sys.argv[2])
        model = Model(path)
        context = Context(model, n_ctx=64, n_threads=1)
        chain = SamplerChain(Dist(1))
        context.decode(Batch.from_tokens([1, 2]))
        state = context.save_state()
        results = {}

        def work():
            made = {
                "sample": lambda: chain.sample(context),
                "Model": lambda: Model(path),
                "Context": lambda: Context(model, n_ctx=64, n_threads=1),
                "decode": lambda: context.decode(Batch.from_tokens([3], 2)),
                "generate": lambda: generate(context, "The", sampler=chain, max_tokens=3).text(),
                "save_state": context.save_state,
                "load_state": lambda: context.load_state(state),
                "tokenize": lambda: model.vocab.tokenize("The llama"),
                "memory": lambda: context.memory.pos_max(),
            }
            for name, use in made.items():
                try:
                    use()
                except LlamaError as error:
                    results[name] = str(error)

        threading.stack_size(kib * 1024)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        refused = {"Model", "Context", "decode", "generate", "save_state"}
        assert set(results) == refused, results
        for name in refused:
            assert f"this thread has {kib} KiB" in results[name], results
            assert "threading.stack_size(262144)" in results[name], results
        assert context.memory.pos_max() == 1
        context.decode(Batch.from_tokens([3], 2))
        chain.sample(context)
    """
    result = run_python(code, demo_path, kib)
    assert (result.returncode, result.stderr) == (0, ""), result


def test_what_it_advises_is_enough(run_python, demo_path):
    code = """
        import sys, threading
        from llamacffi import *
        errors = []

        def work():
            try:
                context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1)
                generate(context, "The llama", max_tokens=3).text()
                context.load_state(context.save_state())
            except BaseException as error:
                errors.append(error)

        threading.stack_size(262144)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not errors, errors
    """
    result = run_python(code, demo_path)
    assert (result.returncode, result.stderr) == (0, ""), result
