"""A forked process cannot use inherited objects, frees none of them, and can create new ones."""

from __future__ import annotations

import os

import pytest

from llamacffi import ForkError
from tests.conftest import ROOT
from tests.facade.helpers import check_script
from tests.facade.test_lifetime_orders import KNOWN, PLAIN, paths, uses  # noqa: F401

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

SETUP = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import gc, multiprocessing, os, threading, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # about forks and threads
from llamacffi import *
from llamacffi._core.ownership import Handle, live_objects
from tests.facade.object_graph import build
from tests.facade.test_fork import outcome
from llamacffi import backend

def use(made):
    made["chain"].sample(made["first"])
    next(made["generation"])
    assert made["vocab"].tokenize("The")
    made["steered"].memory.clear()
    made["steered"].decode(batch_of(5))
    made["gguf"].to_bytes()
    made["pool"].pause()

def batch_of(*tokens):
    batch = Batch(len(tokens))
    batch.add(tokens)
    return batch

def forked(function, *args):
    "Run a function in a forked process, which then exits as any other."
    sys.stdout.flush()
    child = os.fork()
    if not child:
        function(*args)
        sys.exit()
    return child

def check(*children):
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture
def quiet(run_python, paths):  # noqa: F811
    """Run code that must succeed and print nothing but ``ok``."""

    def run(code: str) -> None:
        check_script(run_python, SETUP, code, ROOT, *paths)

    return run


def outcome(thing, others):
    """Return the results of those uses of an object that do not raise `ForkError`; most do."""
    wrong, refused = {}, 0
    for name, use in uses(thing, others):
        if name in PLAIN | KNOWN.get(type(thing), {"model", "check_one"}):
            continue
        try:
            wrong[name] = use()
        except Exception as error:
            if "belongs to the parent process" in str(error) and type(error) is ForkError:
                refused += 1
            else:
                wrong[name] = repr(error)
    assert refused > len(wrong), (type(thing), refused)
    return wrong


def test_every_object_refuses(quiet):
    """Each public method and property of each kind of object raises, as if it were closed."""
    quiet("""
        made = build(*sys.argv[1:])
        n = live_objects()

        def child():
            kinds = set()
            refusing = Handle, SamplerChain, type(made["vocab"]), type(made["memory"])
            for thing in made.values():
                if isinstance(thing, refusing):
                    wrong = outcome(thing, made)
                    # Those that check their arguments first.
                    for name in ("apply", "load_file", "load_state", "restore", "add_tensor",
                                 "check_output", "check_scores", "warmup", "copy_from"):
                        wrong.pop(name, None)
                    assert not wrong, (type(thing), wrong)
                    kinds.add(type(thing).__name__)
                    repr(thing)
            assert len(kinds) == 8, kinds
            for make in (
                lambda: Context(made["model"]),
                lambda: Adapter(made["model"], sys.argv[2]),
                lambda: next(made["generation"]),
                lambda: made["chain"].clone(),
                lambda: generate(made["first"], "The"),
            ):
                try:
                    make()
                except ForkError:
                    continue
                raise AssertionError(make.__code__)
            float(made["view"].sum())  # the child has a copy of the memory

        check(forked(child))
        assert live_objects() == n
        del made["view"]
        use(made)
    """)


def test_the_child_ends_in_any_way(quiet):
    """It closes, drops or keeps its objects, creates new ones, and has children itself."""
    quiet("""
        made = build(*sys.argv[1:])

        def close():
            for thing in list(made.values()):
                if hasattr(thing, "close"):
                    thing.close()
            made.clear()

        def anew():
            made.clear()
            gc.collect()
            mine = build(*sys.argv[1:])
            del mine["view"]
            use(mine)
            check(forked(mine.clear))
            use(mine)
            globals()["mine"] = mine

        for function in (made.clear, close, anew, lambda: None, lambda: os._exit(0)):
            check(forked(function))
        del made["view"]
        use(made)
    """)


def test_a_fork_while_other_threads_are_inside(quiet):
    """They hold the locks of contexts, the log and llama.cpp, which are free in the child."""
    quiet("""
        from llamacffi._core import shutdown
        from llamacffi.backend import registry
        shutdown.EXIT_SECONDS = 10_000  # there are no calls to wait for
        made = build(*sys.argv[1:])
        stop, errors = threading.Event(), []
        del made["view"]

        def repeat(work):
            try:
                while not stop.is_set():
                    work()
            except BaseException as error:
                errors.append(error)

        def compute():
            made["second"].memory.clear()
            generate(made["second"], "The", max_tokens=20).text()

        def log():
            with capture_logs() as lines:
                Model(sys.argv[1], vocab_only=True)
            len(lines)

        def create():
            with Model(sys.argv[1]) as model, Context(model, n_ctx=64, n_threads=1):
                pass

        works = compute, log, create, lambda: made["vocab"].tokenize("The llama " * 1000)
        threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
        for thread in threads:
            thread.start()

        def child():
            try:
                made["second"].memory
                generate(made["second"], "The")
                os._exit(3)
            except ForkError:
                pass
            made.clear()
            gc.collect()
            lib.llamacffi_reserve_lock()
            with registry._lock:
                pass

        try:
            for _ in range(4):
                check(forked(child))
        finally:
            stop.set()
        for thread in threads:
            thread.join()
        assert not errors, errors
    """)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(run_python, paths, tmp_path, method):  # noqa: F811
    (tmp_path / "worker.py").write_text(
        "from llamacffi import *\n"
        "def work(path, n):\n"
        "    with Model(path) as model, Context(model, n_ctx=64, n_threads=1) as context:\n"
        "        chain = SamplerChain(Greedy())\n"
        "        return generate(context, 'The', max_tokens=n, sampler=chain).text()\n"
    )
    code = f"""
        import multiprocessing, sys, warnings
        from llamacffi import *
        from worker import work
        if __name__ == "__main__":
            warnings.simplefilter("ignore", DeprecationWarning)
            context = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1)
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                found = pool.starmap(work, [(sys.argv[1], n) for n in (3, 5, 7)])
                pool.close()
                pool.join()
            for n, text in zip((3, 5, 7), found):
                context.memory.clear()
                sampler = SamplerChain(Greedy())
                assert text == generate(context, "The", max_tokens=n, sampler=sampler).text()
    """
    result = run_python(code, paths[0])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_log_after_a_fork_while_others_log(run_python):
    """Any thread writes to the log; a child must not wait for a thread that it does not have."""
    code = """
    import os, threading
    from llamacffi import backend, lib

    backend.load()
    over = False

    def log():
        while not over:
            lib.ggml_backend_load(b"/nowhere/libggml-none.so")  # logs an error

    thread = threading.Thread(target=log)
    thread.start()
    for _ in range(300):
        child = os.fork()
        if not child:
            lib.ggml_backend_load(b"/nowhere/libggml-none.so")
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    over = True
    thread.join()
    """
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_advice_depends_on_the_devices(monkeypatch):
    from llamacffi._core import shutdown

    assert not shutdown.has_gpu() or "spawn" in str(shutdown.parent_process_error("Model"))
    for gpu, advice in ((False, "make a new one in the child"), (True, "not even for new objects")):
        monkeypatch.setattr(shutdown, "has_gpu", lambda gpu=gpu: gpu)
        error = str(shutdown.parent_process_error("Model"))
        assert error.startswith("this Model belongs to the parent process; ")
        assert advice in error
        assert "'spawn'" in error
