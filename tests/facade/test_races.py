"""close() at any time: from another thread, or from a signal handler."""

from __future__ import annotations

import signal

import pytest

from tests.facade import loras
from tests.facade.helpers import check_script

SETUP = """
import faulthandler, gc, itertools, os, random, signal, sys, threading, time
from collections import Counter
faulthandler.enable()
from llamacffi import *
from llamacffi._core.ownership import live_objects
path, lora = sys.argv[1:]

MAKERS = {
    "context": lambda model: Context(model, n_ctx=32, n_threads=1),
    "sampling": lambda model: Context(
        model, n_ctx=32, n_threads=1, samplers={0: SamplerChain(TopK(4), Dist(1))}
    ),
    "adapter": lambda model: Adapter(model, lora),
    "chain": lambda model: SamplerChain(
        Grammar("root ::= [a-z ]*"), Penalties(), Dist(1), vocab=model.vocab
    ).clone(),
    "vocab": lambda model: model.vocab.tokenize_batch(["The llama", "is"] * 20),
    "save": lambda model: model.save(os.path.join(os.getcwd(), "saved.gguf")) or "saved",
    "generate": lambda model: generate(
        Context(model, n_ctx=32, n_threads=1), "The", max_tokens=3
    ).text(),
}

def attempt(make, model):
    "Return what was made; it may be closed already, or never come to be."
    try:
        return make(model)
    except ClosedError:
        return None
    except LlamaError as error:
        if "closed" not in str(error) + str(error.__context__):
            raise
        return None
"""


@pytest.fixture
def quiet(run_python, demo_path, tmp_path):
    """Run code that must succeed and print nothing but ``ok``."""
    lora = tmp_path / "demo.lora.gguf"
    loras.write_lora(lora, {"blk.0.attn_q.weight": (96, 96)})

    def run(code: str) -> None:
        check_script(run_python, SETUP, code, demo_path, lora)

    return run


def test_closing_the_model_while_other_threads_use_it(quiet):
    quiet("""
        randomly = random.Random(1)
        sys.setswitchinterval(1e-5)
        n_made = n_late = 0
        for i in range(60):
            model, made, errors = Model(path), [], []
            begin = threading.Barrier(3)

            def work(make):
                begin.wait()
                try:
                    for _ in range(3):
                        made.append(attempt(make, model))
                except BaseException as error:
                    errors.append(error)

            makers = randomly.choices(list(MAKERS.values()), k=2)
            threads = [threading.Thread(target=work, args=(make,)) for make in makers]
            for thread in threads:
                thread.start()
            begin.wait()
            time.sleep(randomly.random() * 0.01)
            model.close()
            for thread in threads:
                thread.join()
            assert not errors, errors
            for one in made:
                if hasattr(one, "closed"):
                    assert one.closed, one
                n_late += one is None
                n_made += one is not None
            del made, threads, work, model, one
        assert n_made > 20 and n_late > 20, (n_made, n_late)
        gc.collect()
        assert live_objects() == 0, live_objects()
    """)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no such timer here")
def test_a_signal_handler_closes_the_model(quiet):
    quiet("""
        randomly = random.Random(2)
        model = None

        def close(*_):
            if model is not None:
                model.close()

        signal.signal(signal.SIGALRM, close)
        closed = 0
        for i in range(150):
            model = Model(path)
            make = randomly.choice(list(MAKERS.values()))
            signal.setitimer(signal.ITIMER_REAL, 1e-5 + randomly.random() * 0.008)
            made = attempt(make, model)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if model.closed:
                closed += 1
                assert not hasattr(made, "closed") or made.closed
            model.close()
        assert closed > 10, closed
        del made
        model = None
        gc.collect()
        assert live_objects() == 0, live_objects()
    """)


def test_creating_contexts_while_adapters_come_and_go(quiet):
    quiet("""
        sys.setswitchinterval(1e-5)
        model, errors, stop = Model(path), [], threading.Event()
        rounds = Counter()

        def forever(work):
            try:
                while not stop.is_set():
                    work()
                    rounds[threading.get_ident()] += 1
            except BaseException as error:
                errors.append(error)
                stop.set()

        def load():
            adapters = [Adapter(model, lora) for _ in range(8)]
            for one in adapters[::2]:
                one.close()

        def use():
            context = Context(model, n_ctx=32, n_threads=1)
            adapter = Adapter(model, lora)
            context.adapters = {adapter: 0.5}
            context.decode(Batch.from_tokens([1, 2, 3]))
            context.adapters = {}
            context.decode(Batch.from_tokens([4], 3))

        threads = [threading.Thread(target=forever, args=(one,)) for one in (load, load, use, use)]
        began = time.process_time()
        for thread in threads:
            thread.start()
        while time.process_time() - began < 3 and not stop.is_set():
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert len(rounds) == 4 and min(rounds.values()) > 9, rounds
        model.close()
        del threads
        gc.collect()
        assert live_objects() == 0, live_objects()
    """)


def test_a_child_of_a_closed_model_is_closed(model, demo_path):
    """This happens if the model is closed between the C call and the end of the constructor."""
    from llamacffi import ClosedError, Context, Model
    from llamacffi._core.ownership import Handle, live_objects

    before = live_objects()
    one, join, seen = Model(demo_path), Handle._join, []

    def late(self, parent):
        seen.append(self)
        parent.close()
        join(self, parent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Handle, "_join", late)
        with pytest.raises(ClosedError, match="the Model is closed"):
            Context(one, n_ctx=32, n_threads=1)
    assert seen.pop().closed
    assert live_objects() == before
