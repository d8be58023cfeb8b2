"""Thousands of calls of the facade with hostile values, in hostile orders.  Run by test_fuzz.py.

    python hostile.py SEED CALLS

Objects are made, used, closed and used again at random; arguments are now and then what a method
wants, and mostly not.  Only documented exceptions may come out.  Before each call it is written to
`calls.log`, so that a crash shows what caused it.
"""

from __future__ import annotations

import faulthandler
import inspect
import os
import random
import resource
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import llamacffi
from llamacffi import demo, ffi
from llamacffi.errors import LlamaError

# What a Python programmer expects of bad arguments, besides the errors of the package.
ALLOWED = (
    *(LlamaError, TypeError, ValueError, IndexError, KeyError, OverflowError),
    *(OSError, BufferError, MemoryError, StopIteration, AttributeError),
)
# AttributeError is for setting what is read-only, and for nothing else: see `forgivable`.

CALL_SECONDS = 60
MEMORY = 8 << 30

# Of the whole process, or beyond it, or made by other objects alone.
LEFT_OUT = {
    *("Generation", "Memory", "Vocab"),
    *("from_pretrained", "load_library", "unload", "numa_init", "add_server", "RpcServer"),
    *("set_level", "demo", "log", "backend", "constants", "enums", "lib", "ffi"),
}


class Oops(Exception):
    """What callbacks of this program raise."""


def raises(*_args: object) -> object:
    raise Oops


def main(seed: int, calls: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    fuzz = Fuzz(random.Random(seed), Path("demo.gguf"))
    with open("calls.log", "w", encoding="utf-8") as log:
        for number in range(calls):
            faulthandler.dump_traceback_later(CALL_SECONDS, exit=True)
            fuzz.step(number, log)
    faulthandler.cancel_dump_traceback_later()
    fuzz.report()


class Fuzz:
    """Objects, and what may be done with them."""

    def __init__(self, rng: random.Random, path: Path) -> None:
        self.random = rng
        self.path = path
        demo.write(path)
        self.functions = {
            name: getattr(llamacffi, name) for name in llamacffi.__all__ if name not in LEFT_OUT
        }
        self.functions = {
            name: one
            for name, one in self.functions.items()
            if callable(one) and not (inspect.isclass(one) and issubclass(one, BaseException))
        }
        self.objects: list[Any] = []
        self.calls: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.renew()

    def renew(self) -> None:
        """Have some objects that work."""
        model = llamacffi.Model(self.path)
        unified = self.random.random() < 0.5
        context = llamacffi.Context(
            model, n_ctx=128, n_seq_max=3, n_threads=1, n_batch=32, kv_unified=unified
        )
        batch = llamacffi.Batch(16, n_seq_max=2)
        batch.add([1, 2, 3])
        context.decode(batch)
        chain = llamacffi.SamplerChain(llamacffi.TopK(5), llamacffi.Dist(1))
        self.objects += [model, context, context, batch, batch, chain, model.vocab, context.memory]

    def step(self, number: int, log: Any) -> None:
        """Do one thing."""
        if number % 40 == 39:
            del self.objects[: len(self.objects) // 2]
            self.renew()
        name, call = self.choose()
        log.seek(0)
        log.write(f"{number}: {name}\n")
        log.truncate()
        log.flush()
        self.calls[name.split("(")[0]] = self.calls.get(name.split("(")[0], 0) + 1
        try:
            self.keep(call())
        except Oops:
            pass
        except ALLOWED as error:
            self.errors[type(error).__name__] = self.errors.get(type(error).__name__, 0) + 1
            if not forgivable(error):
                self.fail(number, name)
        except BaseException:
            self.fail(number, name)

    def fail(self, number: int, name: str) -> None:
        print(f"call {number}: {name}", file=sys.stderr)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(3)

    def keep(self, result: object) -> None:
        """Use the objects of the package that a call returned."""
        if type(result).__module__.startswith("llamacffi") and len(self.objects) < 60:
            self.objects.append(result)
        if isinstance(result, Iterator):
            for _ in zip(range(5), result, strict=False):
                pass

    def choose(self) -> tuple[str, Callable[[], object]]:
        """Return what to do next, and its description."""
        if self.random.random() < 0.2:
            name = self.random.choice(sorted(self.functions))
            return self.calling(name, self.functions[name])
        thing = self.random.choice(self.objects)
        names = [name for name in dir(type(thing)) if usable(name)]
        if not names:
            return "nothing", lambda: None
        name = self.random.choice(names)
        full = f"{type(thing).__name__}.{name}"
        attribute = inspect.getattr_static(type(thing), name)
        if isinstance(attribute, property) and self.random.random() < 0.3:
            value = self.value(name)
            return f"{full} = {value!r:.300}", lambda: setattr(thing, name, value)
        if not callable(attribute) and not isinstance(attribute, classmethod | staticmethod):
            return full, lambda: getattr(thing, name)
        return self.calling(full, getattr(thing, name))

    def calling(
        self, name: str, function: Callable[..., object]
    ) -> tuple[str, Callable[[], object]]:
        """Return a call of a function with arguments for some or all of its parameters."""
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            parameters = []
        arguments: list[Any] = []
        options: dict[str, Any] = {}
        for one in parameters:
            if one.default is not one.empty and self.random.random() < 0.5:
                continue
            if one.kind == one.VAR_KEYWORD:
                options |= self.fields(name)
            elif one.kind == one.VAR_POSITIONAL:
                arguments += [self.value(one.name) for _ in range(self.random.randrange(3))]
            elif one.kind == one.KEYWORD_ONLY or len(arguments) < parameters.index(one):
                options[one.name] = self.value(one.name)
            else:
                arguments.append(self.value(one.name))
        text = ", ".join([*map(brief, arguments), *(f"{k}={brief(v)}" for k, v in options.items())])
        return f"{name}({text})", lambda: function(*arguments, **options)

    def fields(self, name: str) -> dict[str, Any]:
        """Return values for some fields of the parameters of a model, context or quantization."""
        from llamacffi._generated.params import KINDS

        struct = {"Context": "llama_context_params", "quantize": "llama_model_quantize_params"}
        known = sorted(KINDS[struct.get(name.split(".")[0], "llama_model_params")])
        chosen = self.random.sample(known, self.random.randrange(3))
        return {field: self.value(field) for field in chosen}

    def value(self, name: str) -> Any:
        """Return a value for a parameter: a fitting one, if its name tells, or any."""
        if self.random.random() < 0.6:
            fitting = [make for key, make in FITTING.items() if key in name]
            if fitting:
                return self.random.choice(fitting)(self)
        return self.random.choice(HOSTILE)(self)

    def one_of(self, *types: type) -> Any:
        """Return an object of a type, which may be closed by now."""
        found = [one for one in self.objects if isinstance(one, types)]
        return self.random.choice(found) if found else None

    def report(self) -> None:
        """Print what was done, so that the test sees that it was much."""
        print(f"{sum(self.calls.values())} calls of {len(self.calls)} functions")
        print(f"{sum(self.errors.values())} errors: {self.errors}")


def usable(name: str) -> bool:
    """Tell whether an attribute may be touched."""
    special = ("__len__", "__repr__", "__iter__", "__next__", "__getitem__", "__enter__")
    return name in special or not (name.startswith("_") or name in LEFT_OUT)


def brief(value: object) -> str:
    try:
        return f"{value!r:.200}"
    except Exception as error:
        return f"<repr: {error}>"


def forgivable(error: BaseException) -> bool:
    """Tell whether an exception is one that a caller could expect.

    An `AttributeError` inside the package, and the messages of CFFI and of Python's operators for
    values that nobody checked, are not.
    """
    if isinstance(error, AttributeError):
        frames = traceback.extract_tb(error.__traceback__)
        return "/llamacffi/" not in frames[-1].filename.replace("\\", "/")
    return True


FITTING: dict[str, Callable[[Fuzz], Any]] = {
    "token": lambda f: f.random.choice([0, 1, 5, [1, 2, 3], np.arange(4, dtype=np.int32), 29]),
    "seq": lambda f: f.random.choice([0, 1, 2, -1, (0, 1), [2]]),
    "source": lambda f: f.random.choice([0, 1, 2]),
    "target": lambda f: f.random.choice([0, 1, 2]),
    "pos": lambda f: f.random.choice([0, 1, 3, 100]),
    "p0": lambda f: f.random.choice([None, 0, 2]),
    "p1": lambda f: f.random.choice([None, 1, 4]),
    "i": lambda f: f.random.choice([-1, 0, 2]),
    "text": lambda f: "The llama",
    "prompt": lambda f: f.random.choice(["The llama", [1, 2]]),
    "stop": lambda f: ["a"],
    "max_tokens": lambda f: 4,
    "path": lambda f: f.random.choice([f.path, "out.bin", "out.gguf"]),
    "src": lambda f: f.path,
    "dst": lambda f: "quantized.gguf",
    "model": lambda f: f.one_of(llamacffi.Model),
    "context": lambda f: f.one_of(llamacffi.Context),
    "batch": lambda f: f.one_of(llamacffi.Batch),
    "sampler": lambda f: f.random.choice([f.one_of(llamacffi.SamplerChain), llamacffi.TopK(3)]),
    "vocab": lambda f: f.one_of(llamacffi.Vocab),
    "capacity": lambda f: 8,
    "n_ctx": lambda f: f.random.choice([16, 64]),
    "n_threads": lambda f: 1,
    "data": lambda f: f.random.choice([b"", b"\0" * 64, os.urandom(200)]),
    "scale": lambda f: 0.5,
    "out": lambda f: np.empty(len(demo.vocabulary()), np.float32),
    "apply": lambda f: f.random.choice([raises, lambda *_: None]),
}

HOSTILE: list[Callable[[Fuzz], Any]] = [
    *(
        (lambda _f, value=value: value)  # type: ignore[misc]
        for value in (
            *(None, True, False, -1, 0, 1, 7, 127, 128, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
            *(2**63 - 1, 2**63, 2**64, 2**100, -(2**31), -(2**31) - 1, -(2**63), -(2**100)),
            *(0.0, -0.5, 1.5, 1e38, 1e39, 1e308, float("nan"), float("inf"), -float("inf"), 1j),
            *(
                "",
                "x",
                "F16",
                "x" * 100_000,
                "\0",
                "a\0b",
                "\ud800",
                "🦙",
                "-1",
                "none",
                "root ::= [a",
            ),
            *(b"", b"\xff\xfe", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 40, b"\0" * 100),
            *((), [], [0], [1, 2, 3], [-1], [2**40], [None], ["x"], [[1]], [1.5], {}, {"a": 1}),
            *({1: 2.0}, {"x": None}, {1, 2}, range(3), range(10**6), object(), object, Ellipsis),
            *(np.float32(1), np.int64(-1), np.uint8(255), np.bool_(True), np.array(5)),
            *(np.zeros(0), np.zeros((2, 2)), np.arange(10)[::2], np.full(3, np.nan, np.float32)),
            *(np.zeros(5, np.uint64) + 2**63, np.array([None]), np.array(["a"]), np.ones(3, bool)),
            *(np.zeros((3, 64), np.float32), np.zeros(10**5, np.int32), ffi.NULL),
            *(memoryview(b"abc"), bytearray(b"abc"), Path("nowhere.gguf"), Path("/"), "nowhere/x"),
            *(raises, print, len, "general.name", llamacffi.TopK(0), llamacffi.Greedy()),
        )
    ),
    lambda f: f.random.choice(f.objects),
    lambda f: f.random.choice(f.objects),
    lambda f: iter([1, 2]),
    lambda f: (x for x in "ab"),
    lambda f: f.random.randrange(-(2**33), 2**33),
    lambda f: os.urandom(f.random.randrange(50)),
]


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
