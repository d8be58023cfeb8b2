"""What is changed in a file, by chance, but where it matters."""

from __future__ import annotations

import functools
import random
import re
import struct
from pathlib import Path

from .layout import ARRAY, FORMATS, TEXT, Layout
from .recipe import Edit

INTEGERS = (0, 1, 2, 3, 5, 7, 8, 31, 64, 255, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-5, 1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    b"",
    b" ",
    b"\0",
    b"\n",
    b"\\n",
    b"\xff",
    b"\xc3",
    b"a" * 64,
    b"a" * 5000,
    b"%s%n",
    b"llama",
)
TEXTS += (b"<0x41>", b"</s>", b"\xe2\x96\x81", "é\N{LLAMA}".encode(), b"{{ x", b"0", b"-1", b"true")
MODELS = (b"llama", b"gpt2", b"bert", b"t5", b"rwkv", b"plamo2", b"none", b"no_vocab", b"test")
PATTERNS = (
    "00",
    "ff",
    "0000807f",
    "0000c07f",
    "000080ff",
    "ffff7f7f",
    "01000000",
    "80",
    "7f",
    "aa55",
)


def mutate(chance: random.Random, data: bytes) -> tuple[Edit, ...]:
    """Return one to three changes."""
    layout = Layout(data) if data.startswith(b"GGUF") else None
    edits: list[Edit] = []
    for _ in range(chance.choice((1, 1, 1, 1, 2, 2, 3))):
        if layout is None or chance.random() < 0.06:
            edits += _anywhere(chance, data)
        else:
            edits += chance.choices(*zip(*CHANGES, strict=True))[0](chance, layout)
    return tuple(edits)


def _hex(kind: str, value: float) -> str:
    """Return a number as bytes, wrapped to what fits."""
    size = struct.calcsize(f"<{kind}")
    if kind in "fd":
        try:
            return struct.pack(f"<{kind}", value).hex()
        except OverflowError:
            return struct.pack(f"<{kind}", float("inf")).hex()
    if isinstance(value, float):
        value = 0 if value != value or abs(value) == float("inf") else int(value)
    return (int(value) % 2 ** (8 * size)).to_bytes(size, "little").hex()


def _number(chance: random.Random, kind: str, now: float) -> str:
    if kind in "fd":
        return _hex(kind, chance.choice((*FLOATS, now / 2 if now == now else 0.0, -now)))
    near = (int(now) + 1, int(now) - 1, int(now) * 2, int(now) // 2, -1, -int(now))
    return _hex(kind, chance.choice((*INTEGERS, *near, *near)))


def _text(text: bytes) -> str:
    return (struct.pack("<Q", len(text)) + text).hex()


def _keys(layout: Layout, kind: str = "") -> list[str]:
    """Return the keys of metadata: all, or those of numbers, texts or arrays."""
    found = [
        name for name, part in layout.parts.items() if part.kind == "entry" and name[:3] == "kv."
    ]
    if kind:
        types = {"array": {ARRAY}, "text": {TEXT}, "number": set(FORMATS)}[kind]
        found = [name for name in found if layout.value(f"{name}.type") in types]
    return found


def _tensors(layout: Layout) -> list[str]:
    return [
        name for name, part in layout.parts.items() if part.kind == "entry" and name[:3] != "kv."
    ]


def _anywhere(chance: random.Random, data: bytes) -> list[Edit]:
    """Change bytes, or cut the file off, wherever; mostly near its beginning."""
    at = (
        chance.randrange(len(data))
        if chance.random() < 0.4
        else chance.randrange(min(len(data), 600))
    )
    if chance.random() < 0.2:
        return [("cut", str(at))]
    size = chance.choice((1, 1, 4, 4, 8))
    at = at // size * size
    new = chance.choice(("00", "01", "ff", "7f", "80", f"{chance.randrange(256):02x}"))
    end = min(at + size, len(data))
    return [(f"@{at}:{end}", new + ("00" if new != "ff" else "ff") * (end - at - 1))]


def _key_number(chance: random.Random, layout: Layout) -> list[Edit]:
    names = _keys(layout, "number")
    if not names:
        return _key_array(chance, layout)
    name = f"{chance.choice(names)}.value"
    return [(name, _number(chance, layout.parts[name].kind, layout.value(name)))]


def _key_text(chance: random.Random, layout: Layout) -> list[Edit]:
    names = _keys(layout, "text")
    if not names:
        return _key_number(chance, layout)
    name = chance.choice(names)
    texts = MODELS if name.endswith(".model") and chance.random() < 0.7 else TEXTS
    return [(f"{name}.value", _text(chance.choice(texts)))]


def _key_type(chance: random.Random, layout: Layout) -> list[Edit]:
    """Give a key another type, with a value of it or with what is there."""
    name = chance.choice(_keys(layout))
    if chance.random() < 0.3:
        return [(f"{name}.type", _hex("I", chance.choice((*range(13), 13, 99, 2**32 - 1))))]
    type_ = chance.choice((*FORMATS, TEXT, ARRAY))
    head = layout.bytes_of(f"{name}.key").hex() + _hex("I", type_)
    if type_ == TEXT:
        return [(name, head + _text(chance.choice(TEXTS)))]
    if type_ == ARRAY:
        inner, n = chance.choice(tuple(FORMATS)), chance.choice((0, 1, 2, 3, 100))
        items = _hex(FORMATS[inner], chance.choice((0, 1, 2, 100))) * n
        return [(name, head + _hex("I", inner) + _hex("Q", n) + items)]
    return [(name, head + _hex(FORMATS[type_], chance.choice((0, 1, 2, 64, -1))))]


def _key_place(chance: random.Random, layout: Layout) -> list[Edit]:
    """Take a key out, or give it another name."""
    names = _keys(layout)
    name = chance.choice(names)
    if chance.random() < 0.7:
        return [(name, ""), ("header.n_kv", _hex("Q", layout.value("header.n_kv") - 1))]
    other = layout.bytes_of(f"{chance.choice(names)}.key")
    return [(f"{name}.key", chance.choice((other.hex(), _text(b""), _text(b"a" * 70000))))]


@functools.cache
def known_keys() -> tuple[str, ...]:
    """Return the keys that llama.cpp reads, by its source: most files have few of them."""
    source = Path(__file__).parents[3] / "vendor/llama.cpp/src/llama-arch.cpp"
    if not source.exists():
        return ("%s.rope.dimension_count",)
    found = re.findall(r'"((?:%s|tokenizer\.ggml)\.[a-z0-9_.]+)"', source.read_text())
    return tuple(sorted(set(found)))


def _key_new(chance: random.Random, layout: Layout) -> list[Edit]:
    """Add a key that llama.cpp knows, or one of others, at the end."""
    last = _keys(layout)[-1]
    architecture = layout.parts.get("kv.general.architecture.value")
    name = "llama"
    if architecture is not None:
        name = layout.data[architecture.start + 8 : architecture.end].decode()
    key = chance.choice(known_keys()).replace("%s", name).encode()
    type_ = chance.choice((4, 4, 4, 5, 6, 6, 7, TEXT, ARRAY))
    added = _text(key) + _hex("I", type_)
    if type_ == TEXT:
        added += _text(chance.choice(TEXTS))
    elif type_ == ARRAY:
        inner, n = chance.choice((4, 5, 6, 7)), chance.choice((0, 1, 2, 3, 4, 8, 33))
        value = chance.choice((0, 1, 2, 3, 64, -1))
        added += _hex("I", inner) + _hex("Q", n) + _hex(FORMATS[inner], value) * n
    else:
        added += _number(chance, FORMATS[type_], chance.choice((1, 2, 4, 16, 64)))
    count = _hex("Q", layout.value("header.n_kv") + 1)
    return [(last, layout.bytes_of(last).hex() + added), ("header.n_kv", count)]


def _key_array(chance: random.Random, layout: Layout) -> list[Edit]:
    """Change the length, the type or an element of an array."""
    names = _keys(layout, "array")
    if not names:
        return _key_type(chance, layout)
    name = chance.choice(names)
    n, type_ = layout.value(f"{name}.n"), layout.value(f"{name}.elements")
    spans, what = layout.items(name), chance.random()
    if what < 0.15:
        return [(f"{name}.n", _number(chance, "Q", n))]
    if what < 0.2:
        return [(f"{name}.elements", _hex("I", chance.choice((*range(13), 2**32 - 1))))]
    if what < 0.4 or not spans:  # fewer or more, and all of them there
        items = layout.bytes_of(f"{name}.items")
        n_new = chance.choice((0, 1, n // 2, max(n - 1, 0), 2 * n))
        new = items + items if n_new > n else items[: spans[n_new][0] if n_new < n else None]
        return [(f"{name}.n", _hex("Q", n_new)), (f"{name}.items", new.hex())]
    first, last = chance.choice(spans)
    if type_ == TEXT:
        other = chance.choice(spans)
        twice = layout.bytes_of(f"{name}.items")[slice(*other)].hex()
        new_text = chance.choice((_text(chance.choice(TEXTS)), twice))
        return [(f"{name}.items@{first}:{last}", new_text)]
    now = struct.unpack(f"<{FORMATS[type_]}", layout.bytes_of(f"{name}.items")[first:last])[0]
    return [(f"{name}.items@{first}:{last}", _number(chance, FORMATS[type_], now))]


def _tensor(chance: random.Random, layout: Layout) -> list[Edit]:
    """Change the shape, the type, the place or the name of a tensor, or take it out."""
    names = _tensors(layout)
    if not names:
        return _key_number(chance, layout)
    name = chance.choice(names)
    n_dims = layout.value(f"{name}.n_dims")
    what = chance.random()
    if what < 0.3:
        part = f"{name}.dim{chance.randrange(n_dims)}"
        return [(part, _number(chance, "Q", layout.value(part)))]
    if what < 0.55:
        return [(f"{name}.type", _hex("I", chance.choice((*range(45), 45, 99, 2**31, 2**32 - 1))))]
    if what < 0.65:
        return [(f"{name}.offset", _number(chance, "Q", layout.value(f"{name}.offset")))]
    if what < 0.75:
        return [(name, ""), ("header.n_tensors", _hex("Q", layout.value("header.n_tensors") - 1))]
    if what < 0.85:
        other = layout.bytes_of(f"{chance.choice(names)}.name")
        return [(f"{name}.name", chance.choice((other.hex(), _text(b""), _text(b"a" * 64))))]
    if what < 0.93:  # other dimensions, of which there are as many as it says
        dims = [layout.value(f"{name}.dim{i}") for i in range(n_dims)]
        changed = chance.choice(
            ([*dims, 1], dims[::-1], dims[:-1], [*dims, 1, 1, 1], [*dims, 2], [1])
        )
        head = layout.bytes_of(f"{name}.name").hex() + _hex("I", len(changed))
        tail = layout.bytes_of(f"{name}.type").hex() + layout.bytes_of(f"{name}.offset").hex()
        return [(name, head + "".join(_hex("Q", one) for one in changed) + tail)]
    return [(f"{name}.n_dims", _hex("I", chance.choice((0, 1, 2, 3, 4, 5, 2**31, 2**32 - 1))))]


def _data(chance: random.Random, layout: Layout) -> list[Edit]:
    """Fill a tensor with numbers that are none, or with one that is too large."""
    names = [name for name, part in layout.parts.items() if part.kind == "data"]
    if not names:
        return _key_array(chance, layout)
    return [(f"fill {chance.choice(names)}", chance.choice(PATTERNS))]


def _header(chance: random.Random, layout: Layout) -> list[Edit]:
    name = chance.choice(("version", "n_tensors", "n_kv"))
    part = f"header.{name}"
    return [(part, _number(chance, layout.parts[part].kind, layout.value(part)))]


CHANGES = (
    *(
        (_key_new, 20),
        (_key_number, 30),
        (_key_text, 8),
        (_key_type, 10),
        (_key_place, 8),
        (_key_array, 18),
    ),
    *((_tensor, 24), (_data, 6), (_header, 2)),
)
