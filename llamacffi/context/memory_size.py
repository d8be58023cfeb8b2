"""The least memory that a context needs, and how much is available.

Linux overcommits memory, and kills a process that uses more than there is.  So the size of the
cache is compared with the available memory first.

upstream: src/llama-kv-cache.cpp ggml_backend_buffer_clear: it fills the cache with zeros at once,
so all of the memory is really used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._native import lib
from ..backend import registry as backend
from ..errors import ContextError

if TYPE_CHECKING:
    from ..model.model import Model

# upstream: src/llama-kv-cells.h llama_kv_cells, llama_kv_cell_ext, seq_set_t: for each cell it
# stores three numbers of a position, a shift and the set of its sequences, whatever the types.
CELL_BYTES = 16 + 256 // 8
GIB = 2**30

# Models with one of these metadata keys have layers that differ, or cache other data than K and V.
UNEVEN = (
    *("attention.key_length_mla", "attention.kv_lora_rank", "attention.key_length_swa"),
    *("attention.shared_kv_layers", "attention.compress_ratios"),
)


def check_memory(struct: Any, model: Model) -> None:
    """Raise ContextError if the least memory that a context needs is not available.

    Args:
        struct: The ``struct llama_context_params *``.
        model: The model.
    """
    n_bytes = cache_bytes(struct, model)
    if n_bytes > GIB // 4:  # not worth the time to ask the system if it is less
        free = available_bytes()
        if n_bytes > free:
            raise ContextError(
                f"the memory for n_ctx={struct.n_ctx or model.n_ctx_train} needs "
                f"{n_bytes / GIB:.1f} GiB, but only {free / GIB:.1f} GiB are free: lower n_ctx or "
                "n_seq_max, or set type_k and type_v to types with fewer bits"
            )


def cache_bytes(struct: Any, model: Model) -> int:
    """Return the least number of bytes of main memory that the cache of a context takes.

    It is exact if all layers have the same attention, and too low otherwise.  Caches on other
    devices are not counted: an allocation that is too large fails there.
    """
    ptr = model.ptr
    if lib.llama_model_is_recurrent(ptr) or lib.llama_model_is_diffusion(ptr):
        return 0
    name = model.metadata.get("general.architecture", "")
    if model.metadata.get(f"{name}.attention.causal") == "false":
        return 0  # an encoder
    n_cells = max(struct.n_ctx or lib.llama_model_n_ctx_train(ptr), struct.n_seq_max)
    n_bytes = int(n_cells * CELL_BYTES)
    on_device = struct.offload_kqv and any("gpu" in device.kind for device in backend.devices())
    if lib.llama_model_is_hybrid(ptr) or on_device:
        return n_bytes
    return n_bytes + int(n_cells) * sum(_row_bytes(struct, model, name))


def _row_bytes(struct: Any, model: Model, name: str) -> Iterator[int]:
    """Yield the sizes of K and V of one token, summed over all layers known to be alike."""
    ptr, metadata = model.ptr, model.metadata
    small_window = not struct.swa_full and lib.llama_model_n_swa(ptr) > 0
    if small_window or any(f"{name}.{key}" in metadata for key in UNEVEN):
        return
    # A list with a number for each layer is missing here; the function returns the first of them.
    alike = f"{name}.attention.head_count_kv" in metadata
    n_layer = lib.llama_model_n_layer(ptr) if alike else 1
    n_head_kv = lib.llama_model_n_head_kv(ptr)
    width = lib.llama_model_n_embd(ptr) // max(1, lib.llama_model_n_head(ptr))
    for key, kind in (("key_length", struct.type_k), ("value_length", struct.type_v)):
        n = n_head_kv * int(metadata.get(f"{name}.attention.{key}", width))
        block = lib.ggml_blck_size(kind)
        yield int(n_layer * lib.ggml_row_size(kind, n // block * block))


def available_bytes() -> int:
    """Return how many bytes this process can still use without displacing other memory."""
    found = [*_of_system(), *_of_group()]
    if not found:
        found = [one.memory_free for one in backend.devices() if one.kind == "cpu"]
    return min(found, default=2**63)


def _of_system() -> Iterator[int]:
    """Yield the available memory that Linux reports."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (x.partition(":") for x in lines)}
    if "MemAvailable" in sizes:
        yield sizes["MemAvailable"] + sizes.get("SwapFree", 0)


def _of_group() -> Iterator[int]:
    """Yield what is left of a container's limit, where Linux can drop cached files."""
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        lines = (root / "memory.stat").read_text().splitlines()
    except OSError:
        return
    if limit != "max":
        yield int(limit) - int(dict(line.split() for line in lines)["anon"])
