"""The metadata of a GGUF as a mapping."""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from .._core.ownership import Handle
from .._core.text import c_text
from .._native import lib
from ..errors import GgufError
from . import values as values
from .convert import convert_to_type

if TYPE_CHECKING:
    from .._generated.enums import GgufType
    from .values import AnyGgufType, Settable, Value

ALIGNMENT = c_text(lib.GGUF_KEY_GENERAL_ALIGNMENT)


class GgufMetadata(Handle, MutableMapping[str, "Value"]):
    """The part of a `Gguf` that is its keys and values."""

    __slots__ = ("_lock", "_stale")

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __init__(self, owner: Any) -> None:
        """Take an owned ``struct gguf_context *``."""
        super().__init__(owner)
        self._lock = threading.RLock()
        self._stale = False  # whether to create the C object again, for changes that C cannot make

    def _find(self, ptr: Any, key: object) -> int:
        if isinstance(key, str) and key and "\0" not in key:
            try:
                raw = key.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                raise KeyError(key) from None
            i: int = lib.gguf_find_key(ptr, raw)
            if i >= 0:
                return i
        raise KeyError(key)

    def __getitem__(self, key: str) -> Value:
        with self._lock:
            ptr = super().ptr
            return values.get(ptr, self._find(ptr, key))

    def __contains__(self, key: object) -> bool:
        with self._lock:
            try:
                self._find(super().ptr, key)
            except KeyError:
                return False
            return True

    def __setitem__(self, key: str, value: Settable) -> None:
        self.set(key, value)

    def set(self, key: str, value: Settable, *, type: AnyGgufType | None = None) -> None:
        """Store a value; a new key is added at the end.

        Args:
            key: Its name.
            value: bool, int, float, str, bytes, a numpy scalar, or a list or array of these.
            type: The type to store it in (for an array, the type of its elements): ``"u8"``,
                ``"i8"``, ... ``"u64"``, ``"i64"``, ``"f32"``, ``"f64"``, ``"bool"`` or ``"str"``.
                By default an existing key keeps its type: the value, also a numpy one, is
                converted and must fit.  A new key gets the type that llama.cpp usually expects:
                for integers ``u32`` (in arrays ``i32``) or the next wider type that holds the
                value; for floats ``f32``.  numpy types of less than 64 bits are kept, because
                numpy never chooses them by itself.

        Raises:
            TypeError: GGUF cannot store this kind of value.
            GgufError: The key or the value cannot be stored, or the type of the key cannot hold
                the value: it is of another kind, or out of range, or a float type would change the
                integer or round it to zero.

        Source: the ``gguf_set_val_*`` functions, ``gguf_set_arr_data``, ``gguf_set_arr_str``.
        """
        raw = values.encode_name(key, "a key", values.KEY_BYTES)
        with self._lock:
            ptr = super().ptr
            i = lib.gguf_find_key(ptr, raw)
            old = values.type_at(ptr, i) if i >= 0 else None
            if type is None and old is not None:
                new = convert_to_type(key, value, old)
            else:
                new = values.typed(key, value, type)
            if key == ALIGNMENT:
                new = values.typed(key, value, "u32")
                if new.array or new.value < 1 or new.value & (new.value - 1):
                    raise GgufError(f"{key} must be a power of two, not {value!r}")
                # upstream: ggml/src/gguf.cpp alignment: it is only read from the metadata when a
                # file is read
                self._stale = True
            values.put(ptr, raw, new)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Store the values of another mapping; those of a `Gguf` keep their types.

        Args:
            *args: The mapping, or pairs of keys and values.
            **kwargs: More keys and values.

        Raises:
            TypeError: GGUF cannot store a value.
            GgufError: A key or a value cannot be stored.
        """
        for other in args[:1]:
            if isinstance(other, GgufMetadata):
                for key in other:
                    self.set(key, other[key], type=other.type(key))
                return
        super().update(*args, **kwargs)

    def __delitem__(self, key: str) -> None:
        with self._lock:
            ptr = super().ptr
            lib.gguf_remove_key(ptr, lib.gguf_get_key(ptr, self._find(ptr, key)))
            self._stale |= key == ALIGNMENT

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            ptr = super().ptr
            n = lib.gguf_get_n_kv(ptr)
            return iter([c_text(lib.gguf_get_key(ptr, i), "surrogateescape") for i in range(n)])

    def __len__(self) -> int:
        with self._lock:
            return int(lib.gguf_get_n_kv(super().ptr))

    def type(self, key: str) -> GgufType:
        """Return the type of a value; for an array, the type of its elements.

        Args:
            key: Its name.

        Raises:
            KeyError: The key does not exist.

        Source: ``gguf_get_kv_type``, ``gguf_get_arr_type``.
        """
        return self._stored_type(key).type

    def is_array(self, key: str) -> bool:
        """Return whether a value is an array.

        Args:
            key: Its name.

        Raises:
            KeyError: The key does not exist.

        Source: ``gguf_get_kv_type``.
        """
        return self._stored_type(key).array

    def _stored_type(self, key: str) -> values.Typed:
        with self._lock:
            ptr = super().ptr
            return values.type_at(ptr, self._find(ptr, key))

    @property
    def version(self) -> int:
        """The version of the format.  Source: ``gguf_get_version``."""
        with self._lock:
            return int(lib.gguf_get_version(super().ptr))

    @property
    def alignment(self) -> int:
        """The alignment of tensor data in bytes; the key ``general.alignment`` sets it.

        Source: ``gguf_get_alignment``.
        """
        value = self.get(ALIGNMENT, lib.GGUF_DEFAULT_ALIGNMENT)
        assert isinstance(value, int)
        return value
