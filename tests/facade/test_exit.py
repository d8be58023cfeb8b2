"""The interpreter exits while threads are working: soon, silently, and with its own exit status."""

from __future__ import annotations

import pytest

from tests.facade.object_graph import GRAMMAR

SETUP = f"""
import itertools, os, sys, threading, time
from llamacffi import *
import llamacffi
path = sys.argv[1]
GRAMMAR = {GRAMMAR!r}
TEXT = "The llama is a wide ranging animal. "
started = threading.Event()

def forever(*works):
    "Do each in a daemon thread of its own, again and again; return when all have begun."
    begun = [threading.Event() for _ in works]

    def run(work, event):
        while True:
            work()
            event.set()

    for work, event in zip(works, begun):
        threading.Thread(target=run, args=(work, event), daemon=True).start()
    for event in begun:
        assert event.wait(60)

def new_context(**params):
    return Context(Model(path), **{{"n_ctx": 256, "n_threads": 1, **params}})

def generator(context, sampler=None):
    def work():
        context.memory.clear()
        generate(context, "The", max_tokens=50, sampler=sampler).text()
    return work
"""


@pytest.fixture
def quiet(run_python, demo_path):
    """Run code; its process must end by itself, with status 7, and print nothing but ``ok``."""

    def run(code: str) -> None:
        lines = [SETUP, *(line[8:] for line in code.splitlines())]
        lines += ["print('ok', flush=True)", "sys.exit(7)"]
        result = run_python("\n".join(lines), demo_path)
        found = result.returncode, result.stdout, result.stderr
        assert found == (7, "ok\n", ""), found

    return run


# What several threads do with shared objects, all of which are freed at the exit.
SHARED = {
    "text": """
        vocab = Model(path).vocab
        tokens = vocab.tokenize(TEXT * 2000)
        forever(
            lambda: vocab.tokenize(TEXT * 2000),
            lambda: vocab.tokenize_batch([TEXT * 100] * 50, n_threads=2),
            lambda: vocab.detokenize(tokens),
            lambda: [vocab.piece(token) for token in range(200)],
        )
    """,
    "files": """
        model, file = Model(path), Gguf.open(path)
        forever(
            lambda: Model(path),
            lambda: model.save("saved.gguf"),
            lambda: quantize(path, "quantized.gguf", "q8_0"),
            lambda: (Gguf.open(path), dict(file)),
            lambda: (repr(model), model.desc, model.size, len(model.metadata)),
        )
    """,
    "contexts": """
        slow = CustomSampler(lambda candidates: time.sleep(0.001))
        chains = SamplerChain(slow, Dist(1)), SamplerChain(Grammar(GRAMMAR), Dist(1))
        seen = new_context(cb_eval=lambda tensor, ask: True)
        pool = Threadpool(2)
        other = new_context()
        other.attach_threadpool(pool)
        forever(
            generator(seen),
            generator(new_context(), chains[0]),
            generator(other, chains[1]),
            lambda: new_context().save_state(),
        )
    """,
    "chains": """
        vocab = Model(path).vocab
        chain = SamplerChain(Grammar(GRAMMAR), Penalties(), Dist(1), vocab=vocab)
        pool = Threadpool(2)
        def pause():
            pool.pause()
            pool.resume()
        def log():
            with capture_logs() as lines:
                Model(path, vocab_only=True)
            len(lines)
        forever(lambda: chain.clone(), pause, log, lambda: Threadpool(2).close())
    """,
}


@pytest.mark.parametrize("what", SHARED)
@pytest.mark.parametrize("attempt", range(2))
def test_daemon_threads(quiet, what, attempt):
    quiet(SHARED[what])


def test_daemon_threads_end_in_place(quiet):
    """None continues with an object that it can no longer use, and none prints a traceback."""
    quiet("""
        import atexit
        went_on = []
        atexit.register(lambda: went_on and os._exit(3))  # runs after the frees
        model = Model(path)

        def work():
            try:
                model.vocab.tokenize(TEXT * 200)
            except Exception as error:
                went_on.append(error)
                raise

        forever(work, work)
    """)


def test_a_call_that_does_not_end(quiet):
    """Nothing that it uses is freed, and the process ends nevertheless."""
    quiet("""
        from llamacffi._core import shutdown
        shutdown.EXIT_SECONDS = 0.3
        asleep = threading.Event()

        def sleep(candidates):
            asleep.set()
            time.sleep(1000)

        context = new_context()
        work = generator(context, SamplerChain(CustomSampler(sleep), Dist(1)))
        threading.Thread(target=work, daemon=True).start()
        asleep.wait()

        # Nothing stops a thread that keeps calling the raw API.
        model, text = Model(path), TEXT.encode() * 20000
        vocab, room = model.vocab.ptr, ffi.new("int32_t[]", 10**6)
        arguments = vocab, text, len(text), room, 10**6, True, True
        forever(lambda: lib.llama_tokenize(*arguments))
    """)


def test_other_threads_finish_first(quiet):
    """Threads that are not daemons are joined first, and can use everything until they end."""
    quiet("""
        done = []

        def work(context):
            time.sleep(0.2)
            done.append(generate(context, "The", max_tokens=20).text())
            SamplerChain(Penalties(), Dist(1), vocab=context.model.vocab).accept(3)
            Model(path).save("saved.gguf")
            os.stat("saved.gguf")

        def check():
            assert done or os._exit(3)

        import atexit
        atexit.register(check)
        threading.Thread(target=work, args=(new_context(),)).start()
    """)


@pytest.mark.no_asan
def test_the_exit_takes_no_time(run_python, demo_path):
    """Idle daemon threads, such as those of progress bars, do not delay it."""
    code = """
        import sys, threading, time, types
        from llamacffi import Context, Model
        context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1)
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        import atexit
        from llamacffi._core import locks, ownership
        atexit.unregister(ownership._free_at_exit)
        slept = []
        for module in (ownership, locks):
            module.time = types.SimpleNamespace(monotonic=time.monotonic, sleep=slept.append)
        ownership._free_at_exit()
        print(sum(slept))
    """
    result = run_python(code, demo_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert 0 < float(result.stdout) < 0.1


# Each of these fails at a different stage.
STAGES = """
    Model("nowhere.gguf") | Model(path, no_such=1) | Model(path, n_gpu_layers="x")
    Model(path, progress=lambda part: 1 / 0) | Model(path, progress=lambda part: sys.exit())
    Model.from_file(b"GGUF") | Model(path, kv_overrides={"general.architecture": "none"})
    Context(model, n_ctx=-1) | Context(model, n_batch=0) | Context(model, type_k="q2_k")
    Context(model, no_such=1) | Context(model, cb_eval=3) | Context(model, n_rs_seq=3)
    Context(model, n_threads=10**6) | Context(model, ctx_type="mtp") | Context(None)
    Context(model, samplers={0: SamplerChain(Dist(1)), 1: None})
    Context(model, samplers={5: SamplerChain(Dist(1))}) | Context(model, ctx_other=model)
    SamplerChain(3) | SamplerChain(Greedy(), Greedy()) | SamplerChain(Penalties()).ptr
    SamplerChain(Grammar("root ::= ("), vocab=model.vocab).ptr
    SamplerChain(Penalties(), Grammar("root ::= nothing"), vocab=model.vocab).ptr
    SamplerChain(CustomSampler(lambda c: 1 / 0), Greedy()).sample(decoded)
    SamplerChain(CustomSampler(print, accept=print), Dist(1)).clone()
    Adapter(model, path) | Adapter(model, b"GGUF") | Adapter(model, "nowhere.gguf")
    Threadpool(0) | Threadpool(2, cpus=[10**4]) | Threadpool(2, poll=101) | Threadpool("x")
    Gguf.open("nowhere.gguf") | Gguf.from_bytes(b"GGUF") | Gguf.from_bytes(whole[:-9])
    Gguf.from_bytes(whole[:300]) | generate(decoded, "") | generate(decoded, "The" * 999)
    RpcServer("nowhere") | quantize(path, "out.gguf", "no_such") | Snapshot()
"""
FAILING = [one.strip() for line in STAGES.split("\n") for one in line.split(" | ") if one.strip()]


def test_failures_halfway(quiet):
    """They leave no object alive, even without the garbage collector, and the exit is silent."""
    cases = ",\n            ".join(f"lambda: {one}" for one in FAILING)
    quiet(f"""
        import gc
        from llamacffi import Snapshot
        from llamacffi._core.ownership import live_objects
        with open(path, "rb") as file:
            whole = file.read()
        model = Model(path)
        decoded = Context(model, n_ctx=64, n_threads=1)
        batch = Batch(1)
        batch.add([5])
        decoded.decode(batch)
        before, kept = live_objects(), []
        gc.collect()
        for use in [
            {cases}
        ]:
            try:
                use()
            except (Exception, SystemExit) as error:
                kept.append(type(error))
            else:
                raise SystemExit(use.__code__)
            gc.collect()
            assert live_objects() == before, (use.__code__, live_objects())
        assert len(kept) == {len(FAILING)}
        assert not os.path.exists("out.gguf")
    """)


@pytest.mark.parametrize("last", [FAILING[3], FAILING[13], "SamplerChain(Penalties()).ptr"])
def test_the_last_thing_that_happens(run_python, demo_path, last):
    """The error ends the process while its traceback keeps a half-made object alive."""
    code = f"import sys\nfrom llamacffi import *\npath = sys.argv[1]\nmodel = Model(path)\n{last}"
    result = run_python(code, demo_path)
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    assert "Exception ignored" not in result.stderr
