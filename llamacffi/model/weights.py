"""The weights of a loaded model: their shapes, their places and their fingerprint."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .._core.text import c_text
from .._native import ffi, lib
from ..errors import NativeError
from .file_kind import architecture_of

# How many bytes of a tensor go into `weights_fingerprint`, from each of how many places.
SAMPLE_BYTES, N_SAMPLES = 64, 4
DIGEST_BYTES = 4
UNREADABLE = bytes(DIGEST_BYTES)
# Weights that are read a few rows at a time, and weights that compute the output.
# upstream: src/llama-arch.cpp "token_embd", "per_layer_token_embd", "output": their names.
ROWS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUTS = ("output.weight", "token_embd.weight")

# Whether the tensors and devices of a model can be listed; older versions of llama.cpp lack this.
CAN_LIST = hasattr(lib, "llamacffi_model_tensor")


def weight_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight by its name: all of ggml's dimensions, in its order."""
    return {c_text(tensor.name): tuple(tensor.ne) for tensor in tensors(model)}


def weights_fingerprint(model: Any, metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a fingerprint of a model that does not depend on where its weights are placed.

    ``layout`` is a hash of the hyperparameters and of the names, types and shapes of all tensors.
    ``samples`` has a short hash of a part of each tensor, in the order of their names: zeros for
    tensors that cannot be read, because their buffer uses its own layout.
    """
    architecture = architecture_of(metadata)
    layout, samples = hashlib.blake2b(digest_size=8), bytearray()
    for key in sorted(key for key in metadata if key.startswith(f"{architecture}.")):
        layout.update(f"{key}={metadata[key]}\n".encode())
    for name, group in sorted(_by_name(model).items()):
        layout.update(b"%s %d %r\n" % (name, group[0].type, tuple(group[0].ne)))
        found = [sample for tensor in group if (sample := _sample(tensor)) is not None]
        if found:
            samples += hashlib.blake2b(found[0], digest_size=DIGEST_BYTES).digest()
        else:
            samples += UNREADABLE
    return {"layout": layout.hexdigest(), "samples": base64.b64encode(samples).decode()}


def same_weights(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two fingerprints can belong to the same model."""
    if one.get("layout") != other.get("layout"):
        return False
    found = [_digests(identity.get("samples")) for identity in (one, other)]
    if len(found[0]) != len(found[1]):
        return False
    comparable = [pair for pair in zip(*found, strict=True) if UNREADABLE not in pair]
    return all(mine == theirs for mine, theirs in comparable)


def _digests(samples: Any) -> list[bytes]:
    """Return the hash of each tensor in ``samples``; none if it is malformed."""
    try:
        raw = base64.b64decode(samples, validate=True)
    except (TypeError, ValueError):
        return []
    return [raw[i : i + DIGEST_BYTES] for i in range(0, len(raw), DIGEST_BYTES)]


def _by_name(model: Any) -> dict[bytes, list[Any]]:
    """Return the tensors of a model by name; one that is used in two places may occur twice."""
    found: dict[bytes, list[Any]] = {}
    for tensor in tensors(model):
        found.setdefault(bytes(ffi.string(tensor.name)), []).append(tensor)
    return found


def tensors(model: Any) -> Iterator[Any]:
    """Yield the tensors of a model; one that is used in two places may occur twice."""
    for i in range(lib.llamacffi_model_n_tensors(model)):
        yield lib.llamacffi_model_tensor(model, i)


def places(model: Any) -> Iterator[tuple[str, bool]]:
    """Yield the name of each weight and whether the CPU computes with it."""
    for tensor in tensors(model):
        if tensor.buffer == ffi.NULL:
            continue
        device = lib.ggml_backend_buft_get_device(lib.ggml_backend_buffer_get_type(tensor.buffer))
        here = lib.ggml_backend_buffer_is_host(tensor.buffer) or (
            device != ffi.NULL
            and lib.ggml_backend_dev_type(device) == lib.GGML_BACKEND_DEVICE_TYPE_CPU
        )
        yield c_text(tensor.name), bool(here)


def is_elsewhere(weights: Iterable[tuple[str, bool]]) -> bool:
    """Return whether all layers of a model are on devices other than the CPU.

    Args:
        weights: The result of `places`.
    """
    # Token embeddings are only read row by row, so they do not count as computed on the CPU.  If
    # they are also the output matrix, there is a second copy, which does count.
    output = False
    for name, here in weights:
        if here and name not in ROWS:
            return False
        output = output or (not here and name in OUTPUTS)
    return output


def _sample(tensor: Any) -> bytes | None:
    """Return a part of the data of a tensor; None if it cannot be read."""
    if not lib.llamacffi_tensor_readable(tensor):
        return None
    size = lib.ggml_nbytes(tensor)
    n = min(SAMPLE_BYTES, size)
    buffer = ffi.new("char[]", N_SAMPLES * n)
    try:
        for i in range(N_SAMPLES):
            offset = (size - n) * i // (N_SAMPLES - 1)
            lib.ggml_backend_tensor_get(tensor, buffer + i * n, offset, n)
    except NativeError:  # a tensor split across devices can only be read as a whole
        return None
    return bytes(ffi.buffer(buffer))
