"""Thousands of calls of the facade with hostile values, in hostile orders.  Run by test_fuzz.py.

    python hostile.py SEED CALLS [DIRECTORY]

Objects are made, used, closed and used again at random; arguments are now and then what a method
wants, and mostly not.  Callbacks do the same again, from inside of a call.  Only documented
exceptions may come out.  Before each call it is written to ``calls.log``, so that a crash shows
what caused it.  DIRECTORY has the files of hostile_files.py, to be copied.

It works in the current directory, and writes nowhere else.
"""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hostile_files import KINDS, VOCABULARIES, prepare
from hostile_values import FITTING, HOSTILE, Oops, samplers
from hostile_work import WORK

import llamacffi
from llamacffi.errors import LlamaError

# What a Python programmer expects of bad arguments, besides the errors of the package; see
# `forgivable` for which of them may come from where.
ALLOWED = (
    *(LlamaError, TypeError, ValueError, IndexError, KeyError),
    *(OSError, BufferError, MemoryError, StopIteration, AttributeError),
)

CALL_SECONDS = 60
MEMORY = 8 << 30
DEPTH = 2  # of calls in callbacks
BIG = 1 << 20  # bytes that are kept for later calls

# Made by other objects alone.
CLASSES = {
    *("Generation", "Memory", "Vocab", "Snapshot", "TensorView", "GgufTensor", "Token", "Sampler"),
    *("ControlVector", "BufferType", "Device", "DeviceMemory", "StateInfo", "QuantizeResult"),
    *("ContextPerf", "SamplerPerf", "Capabilities", "Imatrix", "CapturedLog", "LogLine", "Entry"),
}
# Of the whole process or beyond it.
PROCESS = {
    *("from_pretrained", "hub", "rpc", "RpcServer", "load_library", "unload", "numa_init"),
    *("register", "constants", "enums", "lib", "ffi", "level_number"),
}
# Parts that the facade is made of: they give away what nobody owns, or take it.
PARTS = {
    *("exclusive", "ptr"),
    *(
        "native_error",
        "with_log",
        "warn_of_second_bos",
        "drain",
        "check_other",
        "whole",
        "prefix_of",
        "paths_of",
    ),
}
LEFT_OUT = CLASSES | PROCESS | PARTS
MODULES = ("backend", "demo", "gguf", "log", "shards")
SPECIAL = (
    *("__len__", "__repr__", "__iter__", "__next__", "__getitem__", "__enter__", "__exit__"),
    *("__setitem__", "__delitem__", "__contains__", "__eq__", "__hash__", "__reversed__", "__or__"),
)
# Where Python's own exceptions are what one expects.
LOOKUPS = (
    *("__getitem__", "__delitem__", "__next__", "pop", "popitem", "type", "is_array", "index"),
    *("remove", "keep", "remove_tensor", "rename_tensor", "replace_tensor"),
)


def main(seed: int, calls: int, directory: str | None = None) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    threading.excepthook = lambda _: os._exit(4)
    os.environ["XDG_CACHE_HOME"] = str(Path.cwd())
    if directory is None:
        prepare(Path.cwd())
    else:
        shutil.copytree(directory, ".", dirs_exist_ok=True)
    stay_here()
    Path("directory").mkdir()
    random_generator = random.Random(seed)
    np.random.seed(seed)
    with open("calls.log", "w", encoding="utf-8", errors="replace") as log:
        fuzz = Fuzz(random_generator, log)
        for number in range(calls):
            faulthandler.dump_traceback_later(CALL_SECONDS, exit=True)
            fuzz.next(number)
    faulthandler.cancel_dump_traceback_later()
    fuzz.report()


def stay_here() -> None:
    """Refuse what Python would write outside of the current directory: tests may run as root."""
    sys.dont_write_bytecode = True
    allowed = tuple(one + os.sep for one in (os.getcwd(), tempfile.gettempdir()))

    def check(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            paths = [path]
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink"):
            paths = [one for one in arguments[:2] if isinstance(one, str | bytes | os.PathLike)]
        else:
            return
        for path in paths:
            if isinstance(path, int):
                continue
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith(allowed):
                raise PermissionError(f"{event} of {real!r}")

    sys.addaudithook(check)


class Fuzz:
    """Objects, and what may be done with them."""

    def __init__(self, rng: random.Random, log: Any) -> None:
        self.random = rng
        self.log = log
        self.functions: dict[str, Callable[..., object]] = {}
        for name in llamacffi.__all__:
            self._learn(name, name, getattr(llamacffi, name))
        for module in MODULES:
            home = getattr(llamacffi, module)
            for name, one in vars(home).items():
                if getattr(one, "__module__", None) == home.__name__:
                    self._learn(f"{module}.{name}", name, one)
        self.objects: list[Any] = []
        self.kept_bytes: list[bytes] = []
        self.files: list[Any] = []
        self.stacks = threading.local()
        self.calls: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self.native: dict[str, str] = {}
        self.renew()

    def _learn(self, full: str, name: str, one: Any) -> None:
        if name.startswith("_") or name in LEFT_OUT or not callable(one):
            return
        if not (inspect.isclass(one) and issubclass(one, BaseException | dict)):
            self.functions[full] = one

    def renew(self) -> None:
        """Have some objects that work."""
        rng = self.random
        demo = llamacffi.Model(self.intact("demo"))
        unified = rng.random() < 0.5
        sizes = {"n_threads": 1, "n_batch": 32, "n_ctx": 128}
        context = llamacffi.Context(demo, n_seq_max=3, kv_unified=unified, **sizes)
        batch = llamacffi.Batch(16, n_seq_max=2)
        batch.add([1, 2, 3])
        context.decode(batch)
        chain = llamacffi.SamplerChain(llamacffi.TopK(5), llamacffi.Dist(1))
        self.objects += [demo, context, context, batch, batch, chain, demo.vocab, context.memory]
        kind = rng.choice([*KINDS, "vocab"])
        if kind == "vocab":
            self.attempt(lambda: [self.vocabulary()])
            return
        model = llamacffi.Model(self.intact(kind), load_mtp=kind == "mimo2")
        options = {"cb_eval": self.nested} if rng.random() < 0.3 else {}
        options |= {"n_seq_max": rng.choice([1, 2]), "kv_unified": True}
        other = llamacffi.Context(model, **sizes, **options)  # type: ignore[arg-type]
        self.objects += [model, other, other, other.memory, llamacffi.Batch(8, n_embd=64)]
        self.attempt(lambda: [llamacffi.Adapter(demo, self.intact("demo-lora"))])
        self.attempt(lambda: [llamacffi.Adapter(model, self.intact("lora"))])
        self.attempt(lambda: [llamacffi.ControlVector.from_file(self.intact("control"))])
        self.attempt(lambda: [llamacffi.Gguf.open(self.intact(kind))])
        self.attempt(lambda: [llamacffi.Threadpool(rng.choice([1, 2]))])
        self.attempt(lambda: [llamacffi.Candidates.from_context(context)])
        self.attempt(lambda: [llamacffi.SamplerChain(*(samplers(self) for _ in range(3)))])
        self.attempt(lambda: [llamacffi.generate(context, "The", max_tokens=4)])

    def intact(self, name: str) -> Path:
        """Return a file that no call has written to: a link does not share what replaces it."""
        path = Path(f"{name}.gguf")
        source = Path("intact") / path.name
        if source.exists():
            return source
        source.parent.mkdir(exist_ok=True)
        shutil.copy(path, source)
        return source

    def vocabulary(self) -> Any:
        name = f"ggml-vocab-{self.random.choice(VOCABULARIES)}"
        return llamacffi.Model(self.intact(name), vocab_only=True).vocab

    def attempt(self, make: Callable[[], list[Any]]) -> None:
        """Have one more object, if what it needs allows."""
        with contextlib.suppress(LlamaError, OSError):
            self.objects += make()

    def next(self, number: int) -> None:
        """Do one thing, with other objects now and then."""
        if number % 40 == 39:
            del self.objects[: len(self.objects) // 2]
            self.renew()
        self.step(number)

    @property
    def stack(self) -> list[str]:
        """The calls that run now in this thread."""
        if not hasattr(self.stacks, "calls"):
            self.stacks.calls = []
        calls: list[str] = self.stacks.calls
        return calls

    def nested(self, *arguments: object) -> object:
        """Do things inside of a call: as a callback of any kind."""
        if len(self.stack) > DEPTH:
            return None
        for one in arguments:
            if type(one).__module__.startswith("llamacffi"):
                self.objects.append(one)
        for _ in range(self.random.randrange(3)):
            self.step(-1)
        if self.random.random() < 0.2:
            raise Oops
        return self.random.choice([None, True, True, False, 1, "x", None, *arguments])

    def step(self, number: int) -> None:
        """Do one thing."""
        name, call = self.choose()
        self.stack.append(name)
        self.log.seek(0)
        self.log.write(f"{number}: {'  >  '.join(self.stack)}\n")
        self.log.truncate()
        self.log.flush()
        key = name.split("(")[0].split(" ")[0]
        self.calls[key] = self.calls.get(key, 0) + 1
        try:
            self.keep(call())
        except Oops:
            pass
        except ALLOWED as error:
            self.errors[type(error).__name__] = self.errors.get(type(error).__name__, 0) + 1
            if isinstance(error, llamacffi.NativeError):
                self.native[where(error)] = f"{name}: {error}"
            if not forgivable(error, key):
                self.fail(number, name, error)
        except BaseException as error:
            self.fail(number, name, error)
        finally:
            self.stack.pop()

    def fail(self, number: int, name: str, error: BaseException) -> None:
        """Remember what came out and must not; once for each place."""
        text = "".join(traceback.format_exception(error))[-3000:]
        text = f"call {number}: {'  >  '.join(self.stack)}\n{text}"
        self.failures.setdefault(where(error), text)

    def keep(self, result: object) -> None:
        """Use what a call returned."""
        own = type(result).__module__.startswith("llamacffi") and not isinstance(result, int)
        if own and len(self.objects) < 60:
            self.objects.append(result)
        if isinstance(result, bytes) and 0 < len(result) < BIG:
            self.kept_bytes = [*self.kept_bytes[-5:], result]
        if isinstance(result, np.ndarray) and self.random.random() < 0.2:
            self.objects.append(result)  # a view, held while others are computed
        if isinstance(result, Iterator):
            for _ in zip(range(5), result, strict=False):
                pass

    def bytes(self) -> bytes:
        """Return what a call returned, whole or not, or anything."""
        noise = self.random.randbytes(64)
        kept = self.random.choice([b"", noise, *self.kept_bytes, *self.kept_bytes])
        changed = bytearray(kept)
        if changed and self.random.random() < 0.5:
            for _ in range(self.random.randrange(4)):
                changed[self.random.randrange(len(changed))] = self.random.randrange(256)
            if self.random.random() < 0.3:
                del changed[self.random.randrange(len(changed)) :]
        return bytes(changed)

    def opened(self, path: str) -> Any:
        """Return an open file, which may be closed by now."""
        if len(self.files) < 20 and Path(path).is_file():
            self.files.append(open(path, "rb"))  # noqa: SIM115
        return self.random.choice(self.files) if self.files else None

    def choose(self) -> tuple[str, Callable[[], object]]:
        """Return what to do next, and its description."""
        if self.random.random() < 0.12:
            work = self.random.choice(WORK)
            return work.__name__, lambda: work(self)
        if self.random.random() < 0.25:
            name = self.random.choice(sorted(self.functions))
            return self.calling(name, self.functions[name])
        thing = self.random.choice(self.objects)
        names = [name for name in dir(type(thing)) if usable(name)]
        if not names or isinstance(thing, np.ndarray):
            return "nothing", lambda: None
        name = self.random.choice(names)
        full = f"{type(thing).__name__}.{name}"
        attribute = inspect.getattr_static(type(thing), name)
        if isinstance(attribute, property) and self.random.random() < 0.3:
            value = self.value(name)
            return f"{full} = {brief(value)}", lambda: setattr(thing, name, value)
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
        careful = self.random.random() < 0.6  # then most values fit
        home = name.split(".")[-1] + "."
        for one in parameters:
            if one.default is not one.empty and self.random.random() < 0.5:
                continue
            if one.kind == one.VAR_KEYWORD:
                options |= self.fields(name, careful)
            elif one.kind == one.VAR_POSITIONAL:
                count = self.random.randrange(4)
                arguments += [self.value(one.name, careful, home) for _ in range(count)]
            elif one.kind == one.KEYWORD_ONLY or len(arguments) < parameters.index(one):
                options[one.name] = self.value(one.name, careful, home)
            else:
                arguments.append(self.value(one.name, careful, home))
        text = ", ".join([*map(brief, arguments), *(f"{k}={brief(v)}" for k, v in options.items())])
        return f"{name}({text})", lambda: function(*arguments, **options)

    def fields(self, name: str, careful: bool) -> dict[str, Any]:
        """Return values for some fields of the parameters of a model, context or quantization."""
        from llamacffi._generated.params import KINDS as FIELDS

        struct = {"Context": "llama_context_params", "quantize": "llama_model_quantize_params"}
        known = sorted(FIELDS[struct.get(name.split(".")[0], "llama_model_params")])
        chosen = self.random.sample(known, self.random.randrange(4))
        small = {"n_threads": 1, "n_ctx": 64} if name == "Context" and careful else {}
        return small | {field: self.value(field, careful) for field in chosen}

    def value(self, name: str, careful: bool = True, home: str = "") -> Any:
        """Return a value for a parameter: a fitting one, if its name tells, or any."""
        fitting = FITTING.get(home + name) or FITTING.get(name)
        if fitting and self.random.random() < (0.9 if careful else 0.5):
            return fitting(self)
        return self.random.choice(HOSTILE)(self)

    def one_of(self, *kinds: type) -> Any:
        """Return an object of a type, which may be closed by now."""
        found = [one for one in self.objects if isinstance(one, kinds)]
        return self.random.choice(found) if found else None

    def report(self) -> None:
        """Print what was done, so that the test sees that it was much, and what came out."""
        print(f"{sum(self.calls.values())} calls of {len(self.calls)} functions")
        print(f"{sum(self.errors.values())} errors: {self.errors}")
        Path("found.json").write_text(
            json.dumps({"failures": self.failures, "native": self.native}), encoding="utf-8"
        )
        for text in self.failures.values():
            print(text.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        self.files.clear()
        if self.failures:
            sys.exit(3)


def usable(name: str) -> bool:
    """Tell whether an attribute may be touched."""
    return name in SPECIAL or not (name.startswith("_") or name in LEFT_OUT)


def brief(value: object) -> str:
    if isinstance(value, types.MethodType):
        return value.__qualname__
    try:
        return f"{value!r:.200}"
    except Exception as error:
        return f"<repr: {error}>"


def ours(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of an exception that are in the package."""
    frames = traceback.extract_tb(error.__traceback__)
    return [one for one in frames if "/llamacffi/" in one.filename.replace("\\", "/")]


def where(error: BaseException) -> str:
    """Return what tells an exception from others: its type, and where it came from."""
    inside = ours(error)
    place = f"{Path(inside[-1].filename).name}:{inside[-1].name}" if inside else "outside"
    text = f": {str(error)[:40]!r}" if isinstance(error, llamacffi.NativeError) else ""
    return f"{type(error).__name__} in {place}{text}"


def forgivable(error: BaseException, call: str) -> bool:
    """Tell whether an exception is one that a caller could expect there.

    The messages of CFFI and of attributes of wrong objects tell that nobody checked a value, and so
    does an `IndexError` or `KeyError` of the package's own lists and dictionaries.
    """
    if isinstance(error, LlamaError) or not (inside := ours(error)):
        return "ctype" not in str(error) or isinstance(error, LlamaError)
    if isinstance(error, AttributeError):
        return False
    if isinstance(error, UnicodeError):
        return False
    if isinstance(error, IndexError | KeyError | StopIteration):
        lookup = call.split(".")[-1] in LOOKUPS or inside[-1].name.startswith("check")
        return lookup or raised(inside[-1])
    return "ctype" not in str(error) or raised(inside[-1])


def raised(frame: traceback.FrameSummary) -> bool:
    """Tell whether a line raises an exception itself."""
    return (frame.line or "").lstrip().startswith("raise ")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
