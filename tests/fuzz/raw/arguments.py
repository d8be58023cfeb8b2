"""What may be given for a parameter, and the search for a combination that the function accepts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llamacffi import ffi, lib

from .signatures import Function, Parameter
from .structs import FILLERS, N_TOKENS, fill, is_transparent
from .world import World

INTEGERS = (1, 0, 2, 4, 3)
FLOATS = (1.0, 0.5, 0.0)
POINTERS = 4  # in an array of them
STRUCTS = 1024  # in an array of plain ones
TRIES = 1000
TENSOR = ffi.typeof("struct ggml_tensor *")

# A text that fits, by what the parameter is called; the search finds others.
TEXTS = (b"x", b"general.name", b"CPU", b'root ::= "a"', b"root", b"number", b"text", b"chatml")
TEXTS += (b"output.weight", b"general.architecture", b"mmap")
NUMBERS = {"seq_id": 0, "idx": 0, "i": 0, "token": 5, "dest_seq_id": 0, "nthread": 1}


@dataclass(frozen=True)
class Choice:
    """A value for a parameter, and what to call it."""

    label: str
    value: Any


class NoMaker(Exception):
    """There is no valid object of a type."""


def choices(world: World, function: Function, index: int) -> list[Choice]:
    """Return what may be given for a parameter, the likeliest first.

    Raises:
        NoMaker: Nothing but NULL may.
    """
    parameter = function.parameters[index]
    type_ = parameter.type
    if type_.kind == "primitive":
        return _numbers(parameter, world.numbers.get(parameter.name))
    if type_.kind == "enum":
        return [Choice(name, value) for value, name in sorted(type_.elements.items())]
    if type_.kind == "struct":
        default = Choice("default", _struct(world, ffi.getctype(type_, "*"), 1)[0])
        if type_.cname == "struct llama_batch":
            return [default, Choice("of llama_batch_init", lib.llama_batch_init(N_TOKENS, 0, 1))]
        return [default]
    if type_.kind == "function":
        return [Choice("callback", _callback(world, type_)), Choice("NULL", ffi.NULL)]
    before = [one for one in function.parameters[:index] if one.type is type_]
    return _pointers(world, parameter, len(before))


def _numbers(parameter: Parameter, first: int | None) -> list[Choice]:
    if parameter.type.cname in ("float", "double"):
        return [Choice(repr(one), one) for one in FLOATS]
    if parameter.type.cname == "_Bool":
        return [Choice("false", False), Choice("true", True)]
    first = NUMBERS.get(parameter.name, first)
    numbers = INTEGERS if first is None else (first, *INTEGERS)
    return [Choice(str(one), one) for one in dict.fromkeys(numbers)]


def _pointers(world: World, parameter: Parameter, instance: int) -> list[Choice]:
    type_ = parameter.type
    item = type_.item
    if type_.cname in world.objects:
        kinds = world.objects[type_.cname].items()
        return [Choice(kind, _instance(one, instance)) for kind, one in kinds]
    if parameter.declared == "ggml_backend_graph_plan_t":
        cpu, graph = world.first("ggml_backend"), world.first("ggml_cgraph")
        return [Choice("plan", lib.ggml_backend_graph_plan_create(cpu, graph))]
    if type_.cname == "char *":
        return _texts(world, parameter)
    if type_.cname == "FILE *":
        return [Choice(name, world.file(name)) for name in ("demo.gguf", "lora.gguf")]
    if item.kind in ("primitive", "enum", "void"):
        if item.kind == "void":
            return [Choice("buffer", ffi.cast(type_, world.pages.new()))]
        ones, zeros = world.pages.array(type_), world.pages.array(type_, 0)
        return [Choice("ones", ones), Choice("zeros", zeros)]
    if item.kind == "array":
        return [Choice("zeros", ffi.cast(type_, world.pages.new(ffi.sizeof(item))))]
    if item.kind == "struct" and item.cname == "struct llama_sampler_i":
        return [Choice("callbacks", _interface(world, type_))]
    if item.kind == "struct" and is_transparent(item):
        count = POINTERS if item.cname in FILLERS else STRUCTS
        return [Choice("default", _struct(world, type_, count))]
    if item.kind in ("pointer", "function"):
        return _arrays(world, parameter)
    raise NoMaker(type_.cname)


def _instance(kind: Any, number: int) -> Any:
    return kind[number % len(kind)] if isinstance(kind, list) else kind


def _texts(world: World, parameter: Parameter) -> list[Choice]:
    if not parameter.declared.startswith("const"):
        return [Choice("buffer", world.pages.new())]
    texts = list(TEXTS)
    files = [world.path(name) for name in ("demo.gguf", "lora.gguf", "mmproj.gguf")]
    is_file = any(word in parameter.name for word in ("path", "fname", "file"))
    is_input = is_file and "out" not in parameter.name
    texts = [*files, *texts] if is_input else [*texts, *files]
    return [Choice("text", world.pages.text(one)) for one in texts]


def _arrays(world: World, parameter: Parameter) -> list[Choice]:
    """Return arrays of pointers, one for each kind of object."""
    item = parameter.type.item
    if item.kind == "function" or item.cname == "void *":
        return [Choice("zeros", ffi.cast(parameter.type, world.pages.new()))]
    inner = Parameter(parameter.name, parameter.declared.removesuffix("*").strip(), item)
    found = []
    for one in _pointers(world, inner, 0):
        array = ffi.cast(parameter.type, world.pages.new())
        for i in range(POINTERS):
            array[i] = one.value
        found.append(Choice(f"array of {one.label}", array))
    return found


def _struct(world: World, pointer: Any, count: int) -> Any:
    type_ = ffi.typeof(pointer) if isinstance(pointer, str) else pointer
    start = world.pages.struct(type_, None, count)
    fill(world, start, count)
    return start


def _callback(world: World, type_: Any) -> Any:
    result = type_.result
    if result.kind == "struct":
        made = ffi.callback(type_, lambda *_: ffi.new(ffi.getctype(result, "*"))[0])
    elif result.kind == "void":
        made = ffi.callback(type_, lambda *_: None)
    else:
        made = ffi.callback(type_, lambda *_: ffi.cast(result, 0))
    world.keep.append(made)
    return made


def _interface(world: World, pointer: Any) -> Any:
    start = world.pages.struct(pointer)
    for name, field in pointer.item.fields:
        setattr(start, name, _callback(world, field.type))
    return start


def combinations(pools: list[list[Choice]], seed: str) -> Iterator[list[Choice]]:
    """Yield what to try: the first of each, then draws in which the first are likelier."""
    rng = random.Random(seed)
    yield [pool[0] for pool in pools]
    if all(len(pool) == 1 for pool in pools):
        return
    for i in range(TRIES):
        draw = [pool[0] if rng.random() < 0.4 else rng.choice(pool) for pool in pools]
        if rng.random() < 0.5:
            _make_alike(draw, pools, rng)
        if i >= TRIES // 2:
            _leave_out(draw, rng)
        yield draw


def _tensors(draw: list[Choice]) -> list[int]:
    return [
        i
        for i, one in enumerate(draw)
        if isinstance(one.value, ffi.CData) and ffi.typeof(one.value) is TENSOR
    ]


def _make_alike(draw: list[Choice], pools: list[list[Choice]], rng: random.Random) -> None:
    """Have most tensors of one kind, as most operations want it."""
    if places := _tensors(draw):
        kind = rng.randrange(min(len(pools[i]) for i in places))
        for i in places:
            if rng.random() < 0.8:
                draw[i] = pools[i][kind]


def _leave_out(draw: list[Choice], rng: random.Random) -> None:
    """Leave out tensors that may not be needed: never the first two."""
    for i in _tensors(draw)[2:]:
        if rng.random() < 0.3:
            draw[i] = Choice("NULL", ffi.NULL)
