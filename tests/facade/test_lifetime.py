"""No order of events causes a double free, an early free or a leak; each runs in a new process."""

from __future__ import annotations

import os
import sys

import pytest

from tests.facade import loras
from tests.facade.helpers import check_script

SETUP = """
import gc, os, sys, threading
import llamacffi
from llamacffi import *
from llamacffi._core.ownership import live_objects

def things():
    model = Model(sys.argv[1])
    context = Context(model, n_ctx=1024, n_ubatch=32, n_threads=1)
    chain = SamplerChain(Penalties(), TopK(40), Dist(1))
    batch = Batch(8)
    batch.add(range(8))
    context.decode(batch)
    chain.sample(context)
    return {"model": model, "context": context, "chain": chain, "vocab": model.vocab,
            "batch": batch, "memory": context.memory, "view": context.logits_view()}

def decode_forever(context, started, pos=8):
    batch = Batch(512)
    while True:
        batch.clear()
        batch.add([7] * 512, pos=pos)
        started.set()
        context.decode(batch)
        context.memory.remove(0, pos)
"""


@pytest.fixture
def quiet(run_python, demo_path):
    """Run code that must succeed and print nothing but ``ok``."""

    def run(code: str) -> None:
        check_script(run_python, SETUP, code, demo_path)

    return run


def test_every_order_of_closing_and_dropping(quiet):
    quiet("""
        import itertools
        for end in ("close", "del"):
            for order in itertools.permutations(("model", "context", "chain", "vocab", "view")):
                made = things()
                del made["memory"], made["batch"]
                for name in order:
                    thing = made.pop(name)
                    if end == "close" and hasattr(thing, "close"):
                        thing.close()
                        thing.close()
                    del thing
                assert live_objects() == 0, (end, order, live_objects())
    """)


def test_dropping_needs_no_garbage_collector(quiet):
    """A model must not stay in memory until Python happens to look for cycles."""
    quiet("""
        gc.disable()
        made = things()
        del made["view"]
        for text in generate(made["context"], "The", max_tokens=3):
            pass
        for text in generate(made["context"], "The"):
            break
        made.clear()
        assert live_objects() == 0, live_objects()
    """)


def test_garbage_cycles(quiet):
    quiet("""
        for _ in range(20):
            made = things()
            made["model"].cycle = made
            made["batch"] = [made]
            del made
        gc.collect()
        assert live_objects() == 0, live_objects()
    """)


@pytest.mark.parametrize("keep", ["made = things()", "things()['model'].cycle = things()"])
def test_exit_without_closing(quiet, keep):
    quiet(f"""
        {keep}
        generation = generate(Context(Model(sys.argv[1]), n_ctx=64), "The")
        next(generation)
    """)


@pytest.mark.parametrize("attempt", range(3))
def test_exit_while_a_daemon_thread_decodes(quiet, attempt):
    quiet("""
        made, started = things(), threading.Event()
        del made["view"]
        threading.Thread(
            target=decode_forever, args=(made["context"], started), daemon=True
        ).start()
        started.wait()
    """)


def test_exit_while_a_daemon_thread_samples(quiet):
    quiet("""
        made, started = things(), threading.Event()

        def sample():
            while True:
                made["chain"].sample(made["context"])
                started.set()

        threading.Thread(target=sample, daemon=True).start()
        started.wait()
    """)


def test_exit_waits_for_a_thread_that_decodes(quiet):
    quiet("""
        made = things()
        del made["view"]

        def work(context):
            batch = Batch(512)
            batch.add([7] * 512, pos=8)
            context.decode(batch)
            assert context.memory.pos_max() == 519

        threading.Thread(target=work, args=(made.pop("context"),)).start()
        made.clear()
    """)


@pytest.mark.parametrize("what", ["model", "context"])
def test_close_while_another_thread_decodes(quiet, what):
    quiet(f"""
        made, started, errors = things(), threading.Event(), []
        del made["view"]

        def work():
            try:
                decode_forever(made["context"], started)
            except ClosedError as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        started.wait()
        made["{what}"].close()
        thread.join()
        assert len(errors) == 1
        made["model"].close()
        made.pop("chain").close()
        del thread, work
        assert live_objects() == 0, live_objects()
    """)


def test_a_view_keeps_its_memory(quiet):
    quiet("""
        made = things()
        view, before = made["view"], made["context"].logits()
        for name in ("context", "model", "chain"):
            made[name].close()
        made.clear()
        gc.collect()
        assert live_objects() > 0
        assert (view == before).all()
        part = view[100:200]
        del view
        assert (part == before[100:200]).all()
        del part
        assert live_objects() == 0
    """)


def test_closing_the_model_closes_everything_made_from_it(quiet):
    quiet("""
        made = things()
        del made["view"]
        other = Context(made["model"], n_ctx=64)
        with made["model"]:
            pass
        for name in ("model", "context", "chain"):
            assert made[name].closed, name
        assert other.closed
        assert live_objects() == 0, live_objects()
        for use in (
            lambda: made["vocab"].tokenize("a"),
            lambda: made["memory"].clear(),
            lambda: made["chain"].accept(1),
            lambda: generate(made["context"], "The"),
            lambda: Context(made["model"]),
        ):
            try:
                use()
            except ClosedError:
                continue
            raise SystemExit("no ClosedError")
    """)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork(quiet):
    """The child cannot use objects of the parent, frees none of them, and can create new ones."""
    quiet("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # about forks and threads
        made = things()
        del made["view"]
        n = live_objects()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for use in (
                    lambda: made["context"].decode(made["batch"]),
                    lambda: made["context"].logits(),
                    lambda: made["context"].memory.clear(),
                    lambda: made["model"].desc,
                    lambda: made["vocab"].tokenize("a"),
                    lambda: made["chain"].accept(1),
                    lambda: Context(made["model"]),
                ):
                    try:
                        use()
                    except ForkError as error:
                        assert "belongs to the parent process" in str(error)
                    else:
                        raise AssertionError(use)
                made["context"].close()
                made.clear()
                gc.collect()
                new = things()
                new["chain"].sample(new["context"])
                code = 0
            finally:
                if code:
                    import traceback
                    traceback.print_exc()
                    os._exit(code)
            sys.exit()  # while objects of the child are alive
        assert os.waitpid(child, 0)[1] == 0
        assert live_objects() == n
        made["chain"].sample(made["context"])
        assert made["vocab"].tokenize("The")
    """)


@pytest.mark.no_asan
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(run_python, demo_path, tmp_path):
    """200 models, contexts, chains, adapters and GGUFs: memory, files and threads do not grow."""
    lora = loras.write_lora(tmp_path / "demo.lora.gguf", {"blk.0.attn_q.weight": (96, 96)})
    code = """
        import gc, os, statistics, sys, threading
        from llamacffi import *
        from llamacffi._core.ownership import live_objects
        path, lora = sys.argv[1:]

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        def counts():
            return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

        def once(i):
            model = Model(path)
            context = Context(model, n_ctx=64, n_ubatch=32, n_threads=1)
            context.adapters = {Adapter(model, lora): 0.5}
            chain = SamplerChain(Grammar('root ::= [a-zA-Z ,.]*'), Penalties(), Dist(1))
            generate(context, "The", max_tokens=2, sampler=chain).text()
            gguf = Gguf.open(lora)
            next(iter(gguf.tensors.values())).data.sum()
            if i % 2:
                model.close()
                gguf.close()

        gc.disable()
        sizes = []
        for i in range(200):
            once(i)
            assert live_objects() == 0, i
            sizes.append(resident())
            if i == 20:
                before = counts()
        assert counts() == before and threading.active_count() == 1, (before, counts())
        early, late = statistics.median(sizes[40:80]), statistics.median(sizes[160:])
        # The file takes 0.6 MB and the cache 0.1 MB: a leak of either would exceed 10 MB.
        print((late - early) / 2**20)
    """
    result = run_python(code, demo_path, lora)
    assert (result.returncode, result.stderr) == (0, "")
    assert float(result.stdout) < 2


def test_failures_leave_nothing(quiet):
    quiet("""
        model = Model(sys.argv[1])
        before = live_objects()
        for _ in range(3):
            for make in (
                lambda: Model(sys.argv[1], progress=lambda part: False),
                lambda: Model(sys.argv[1], progress=lambda part: 1 / 0),
                lambda: Context(model, n_batch=0),
                lambda: Context(model, type_k="q2_k"),
                lambda: Context(model, ctx_type="mtp"),
                lambda: SamplerChain(Penalties()).ptr,
            ):
                try:
                    make()
                except (LlamaError, ZeroDivisionError):
                    continue
                raise SystemExit("it worked")
        gc.collect()
        assert live_objects() == before
    """)
