"""Objects that depend on each other go in any order, together, in cycles, or only at exit."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from llamacffi import (
    Adapter,
    Batch,
    ClosedError,
    Context,
    Gguf,
    LlamaError,
    Model,
    SamplerChain,
    Threadpool,
)
from llamacffi._core.ownership import Handle, live_objects
from tests.conftest import ROOT
from tests.facade import loras, object_graph
from tests.facade.helpers import check_script

SETUP = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import atexit, gc, itertools, os, random, signal, threading, time, weakref
from llamacffi import *
from llamacffi._core.ownership import live_objects
from tests.facade.object_graph import ENDS, build

def new():
    return build(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def paths(demo_path, random_path, tmp_path_factory):
    """The arguments of `object_graph.build`."""
    lora = tmp_path_factory.mktemp("lora") / "demo.lora.gguf"
    loras.write_lora(lora, {"blk.0.attn_q.weight": (96, 96), "blk.0.ffn_down.weight": (96, 32)})
    return demo_path, lora, random_path("llama"), random_path("eagle3")


@pytest.fixture
def quiet(run_python, paths):
    """Run code that must succeed and print nothing but ``ok``."""

    def run(code: str, returncode: int = 0) -> None:
        check_script(run_python, SETUP, code, ROOT, *paths, status=returncode)

    return run


def test_each_kind_is_counted(paths):
    """`no_leaks` counts every kind: all owners of C objects have a finalizer."""
    before = live_objects()
    made = object_graph.build(*paths)
    kinds = {
        type(thing).__name__ for thing in made.values() if isinstance(thing, Handle | SamplerChain)
    }
    assert kinds == {"Model", "Context", "SamplerChain", "Adapter", "Threadpool", "Gguf"}
    n = live_objects()
    del made["tensor"], made["snapshot"], made["candidates"]
    # A generation uses a chain; contexts use the adapter and the pool.
    gone = {"clone": 0, "generation": 1, "adapter": 0, "pool": 0, "gguf": 1, "chain": 1}
    for name, expected in gone.items():
        del made[name]
        assert n - live_objects() == expected, name
        n = live_objects()
    made.clear()
    assert live_objects() == before


@pytest.mark.parametrize("seed", range(2))
def test_random_orders(quiet, seed):
    """Each object is closed or dropped, sometimes with a garbage collection in between."""
    quiet(f"""
        chance = random.Random({seed})
        gc.disable()
        for _ in range(20):
            made = new()
            names = list(made)
            chance.shuffle(names)
            steps = []
            for name in names:
                end = chance.choice(list(ENDS))
                steps.append((name, end))
                ENDS[end](made, name)
                if chance.random() < 0.1:
                    gc.collect()
            assert live_objects() == 0, (steps, live_objects())
    """)


def test_every_order_of_dependent_objects(quiet):
    quiet("""
        gc.disable()
        for order in itertools.permutations(("model", "first", "adapter", "view")):
            for end in ENDS.values():
                made = new()
                keep = {name: made[name] for name in order}
                for name in ("vocab", "second", "third", "clone", "generation", "memory",
                             "chain", "candidates", "snapshot"):
                    del made[name]
                del made
                for name in order:
                    end(keep, name)
                assert live_objects() == 0, (order, live_objects())
    """)


def test_random_orders_before_the_exit(quiet):
    """Some are closed, some dropped, the rest left; each case runs in a fork."""
    quiet("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        chance = random.Random(5)
        for _ in range(12):
            seed = chance.random()
            child = os.fork()
            if not child:
                chance = random.Random(seed)
                made = new()
                for name in chance.sample(list(made), chance.randrange(len(made))):
                    ENDS[chance.choice(list(ENDS))](made, name)
                if chance.random() < 0.5:
                    made["cycle"] = made
                sys.exit()
            assert os.waitpid(child, 0)[1] == 0, seed
    """)


def test_cycles_and_subclasses(quiet):
    quiet("""
        class MyModel(Model):
            pass

        class MyContext(Context):
            pass

        def decoded(context):
            batch = Batch(1)
            batch.add([5])
            context.decode(batch)
            return context

        ends = []
        gc.disable()
        for _ in range(5):
            model = MyModel(sys.argv[1])
            model.context = MyContext(model, n_ctx=64, n_threads=1)
            model.context.me = model.context
            model.context.chain = SamplerChain(Penalties(), Dist(1), vocab=model.vocab)
            model.context.chain.ptr
            weakref.finalize(model, ends.append, "model")
            weakref.finalize(model.context, ends.append, "context")
            context = weakref.ref(model.context)
            del model
        assert live_objects() > 0 and not ends and context() is not None
        gc.collect()
        assert live_objects() == 0, live_objects()
        assert sorted(ends) == ["context"] * 5 + ["model"] * 5
        assert context() is None
        for _ in range(5):  # a callback that refers to its caller
            made = {}
            look = lambda tensor, ask: bool(made)
            made["context"] = Context(Model(sys.argv[1]), n_ctx=64, n_threads=1, cb_eval=look)
            custom = CustomSampler(lambda candidates: made and None)
            made["chain"] = SamplerChain(custom, Greedy())
            made["chain"].sample(decoded(made["context"]))
            del made, look, custom
        gc.collect()
        assert live_objects() == 0, live_objects()
    """)


def test_views_outlive_everything(quiet):
    quiet("""
        import numpy as np
        made = new()
        view, tensor, candidates = made["view"], made["tensor"], made["candidates"]
        scores, weights = np.array(view), np.array(tensor)
        for thing in made.values():
            if hasattr(thing, "close"):
                thing.close()
        made.clear()
        del thing
        gc.collect()
        assert (view == scores).all() and (tensor == weights).all()
        assert len(candidates.id) and np.isfinite(candidates.logit).all()
        part = memoryview(view[5:10])
        del view
        assert live_objects() > 0
        assert part[0] == scores[5]
        del part
        assert live_objects() == 0, live_objects()
    """)


def test_exit_handlers(quiet):
    """Handlers that run after the frees find the objects closed; views keep their memory."""
    quiet("""
        def late(*more):
            assert float(made["view"].sum()) == total
            for use in (
                lambda: made["vocab"].tokenize("The"),
                lambda: made["model"].desc,
                lambda: made["chain"].accept(3),
                lambda: made["memory"].pos_max(),
                lambda: made["gguf"]["general.type"],
                lambda: made["adapter"].metadata,
                lambda: made["pool"].pause(),
                *more,
            ):
                try:
                    use()
                except (ClosedError, StopIteration):
                    continue
                os._exit(3)
            repr([made["model"], made["first"], made["chain"], made["gguf"], made["adapter"]])
            made["model"].close()

        # Modules can still be imported here.
        atexit.register(late, lambda: made["first"].logits(), lambda: next(made["generation"]))

        class Last:
            def __del__(self, late=late):
                late()

        made = new()
        total = float(made["view"].sum())
        last = Last()
        atexit.register(lambda: made["vocab"].tokenize("The"))  # runs before the frees, so it works
    """)


PLAIN = {"close", "closed", "exclusive"}  # of every object
# What is known without C.
KNOWN = {
    Model: {"path", "without_weights", "vocab", "architecture", "metadata", "recommended_sampling"},
    Context: {"model", "kv_unified", "cancel", "memory"},
    SamplerChain: {"count", "index", "with_seed"},
    Adapter: {"alpha", "invocation_start", "invocation_tokens", "model"},
    Threadpool: {"n_threads", "cpus", "placement"},
    Gguf: {"data_offset", "keys", "values", "items", "update"},
}


def uses(thing, others):
    """Yield the public names of an object, each with a function that uses it."""
    for name in dir(type(thing)):
        attribute = inspect.getattr_static(type(thing), name)
        if name.startswith("_") or isinstance(attribute, classmethod | staticmethod):
            continue
        if inspect.isfunction(attribute):
            yield name, lambda name=name: call(getattr(thing, name), others)
        else:
            yield name, lambda name=name: getattr(thing, name)


def call(method, others):
    """Call a method with a value for each required parameter."""
    values = {"tokens": [5], "token": 5, "text": "a", "texts": ["a"], "batch": Batch(1)}
    values |= {"sequences": [[5]], "name": "a", "data": b"a", "key": "a", "path": "a", "d": 2}
    values |= {"causal": True, "embeddings": True}
    values |= {
        "pool": others["pool"],
        "candidates": others["candidates"],
        "chain": None,
        "snapshot": others["snapshot"],
    }
    values |= {
        "array": np.ones(1, np.float32),
        "source": others["clone"],
        "context": others["second"],
        **{"causal": True, "embeddings": True},
    }
    parameters = inspect.signature(method).parameters.values()
    needed = [one for one in parameters if one.default is one.empty and one.kind <= 1]
    return method(*(values.get(one.name, 0) for one in needed))


@pytest.mark.parametrize("kind", KNOWN)
def test_closed_objects_raise_closed_error(paths, kind, tmp_path, monkeypatch):
    """All public methods and properties raise it."""
    monkeypatch.chdir(tmp_path)
    made = object_graph.build(*paths)
    del made["view"]
    thing = next(thing for thing in made.values() if type(thing) is kind)
    thing.close()
    closed, checked, wrong = set(), set(), {}
    for name, use in uses(thing, made):
        if name in PLAIN | KNOWN[kind]:
            continue
        try:
            wrong[name] = use()
        except ClosedError:
            closed.add(name)
        except (LlamaError, IndexError):
            checked.add(name)  # it checked its arguments first
        except Exception as error:
            wrong[name] = repr(error)
    assert not wrong
    assert len(closed) > 2 * len(checked)
    assert thing.closed
    repr(thing)
    assert not list(tmp_path.iterdir())


def test_parts_of_closed_objects_raise_closed_error(paths):
    made = object_graph.build(*paths)
    vocab, memory, generation = made["vocab"], made["memory"], made["generation"]
    made["model"].close()
    closed, wrong = set(), {}
    for thing in (vocab, memory):
        for name, use in uses(thing, made):
            if name in ("model", "check_one"):
                continue
            try:
                wrong[name] = use()
            except ClosedError:
                closed.add((type(thing).__name__, name))
            except Exception as error:
                wrong[name] = repr(error)
    assert not wrong
    assert len(closed) > 30
    with pytest.raises(ClosedError):
        next(generation)
