"""A tiny model of pictures for the built-in model, and what mtmd makes with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from llamacffi import ffi, lib

if TYPE_CHECKING:
    from .world import World

KIND = "idefics3"
IMAGE, PATCH, MERGE = 32, 16, 2  # pixels, pixels, patches
N_EMBD, N_FF, N_HEAD = 32, 32, 2


def write(path: Path, n_embd: int) -> Path:
    """Write it for a model with embeddings of this length."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", KIND)
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "image_size": IMAGE,
        "patch_size": PATCH,
        "preproc_image_size": IMAGE,
        "embedding_length": N_EMBD,
        "feed_forward_length": N_FF,
        "projection_dim": n_embd,
        "block_count": 1,
        "attention.head_count": N_HEAD,
        "projector.scale_factor": MERGE,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    for name in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{name}", [0.5, 0.5, 0.5])
    random = np.random.default_rng(7)
    for name, shape in _shapes(n_embd).items():
        writer.add_tensor(name, random.standard_normal(shape, np.float32) / 8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shapes(n_embd: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (N_EMBD, 3, PATCH, PATCH),
        "v.patch_embd.bias": (N_EMBD,),
        "v.position_embd.weight": ((IMAGE // PATCH) ** 2, N_EMBD),
        "v.post_ln.weight": (N_EMBD,),
        "v.post_ln.bias": (N_EMBD,),
        "mm.model.fc.weight": (n_embd, N_EMBD * MERGE**2),
    }
    for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
        shapes[f"v.blk.0.{name}.weight"] = (N_EMBD, N_EMBD)
        shapes[f"v.blk.0.{name}.bias"] = (N_EMBD,)
    for name in ("ln1", "ln2"):
        shapes[f"v.blk.0.{name}.weight"] = shapes[f"v.blk.0.{name}.bias"] = (N_EMBD,)
    shapes |= {"v.blk.0.ffn_up.weight": (N_FF, N_EMBD), "v.blk.0.ffn_up.bias": (N_FF,)}
    return shapes | {"v.blk.0.ffn_down.weight": (N_EMBD, N_FF), "v.blk.0.ffn_down.bias": (N_EMBD,)}


def objects(world: World) -> dict[str, dict[str, Any]]:
    """Return the objects of mtmd, with and without a model."""
    chunks = lib.mtmd_test_create_input_chunks()
    by_type = {
        lib.mtmd_input_chunk_get_type(one): one
        for i in range(lib.mtmd_input_chunks_size(chunks))
        for one in [lib.mtmd_input_chunks_get(chunks, i)]
    }
    image = by_type[lib.MTMD_INPUT_CHUNK_TYPE_IMAGE]
    context = _mtmd_context(world)
    batch = lib.mtmd_batch_init(context)
    ours, picture = _tokenized(world, context)
    lib.mtmd_encode_chunk(context, picture)
    lib.mtmd_batch_add_chunk(batch, picture)
    lib.mtmd_batch_encode(batch)
    pixels, samples = world.pages.new(), ffi.cast("float *", world.pages.new())
    return {
        "mtmd_context": {"of pictures": context},
        "mtmd_batch": {"encoded": batch, "empty": lib.mtmd_batch_init(context)},
        "mtmd_input_chunks": {
            "of the model": ours,
            "text and image": chunks,
            "empty": lib.mtmd_input_chunks_init(),
        },
        "mtmd_input_chunk": {
            "of the model": picture,
            "text": by_type[lib.MTMD_INPUT_CHUNK_TYPE_TEXT],
            "image": image,
        },
        "mtmd_image_tokens": {"of the image": lib.mtmd_input_chunk_get_tokens_image(image)},
        "mtmd_bitmap": {
            "4x4": lib.mtmd_bitmap_init(4, 4, ffi.cast("unsigned char *", pixels)),
            "sound": lib.mtmd_bitmap_init_from_audio(16, samples),
        },
    }


def _tokenized(world: World, context: Any) -> tuple[Any, Any]:
    """Return a text with a picture as chunks of a model, and the chunk of the picture."""
    text = world.pages.struct(ffi.typeof("struct mtmd_input_text *"))
    content = b"a llama " + ffi.string(lib.mtmd_default_marker())
    text.text, text.text_len = world.pages.text(content), len(content)
    pixels = ffi.cast("unsigned char *", world.pages.new())
    chunks = lib.mtmd_input_chunks_init()
    size = IMAGE
    pictures = ffi.new("const mtmd_bitmap *[]", [lib.mtmd_bitmap_init(size, size, pixels)])
    assert lib.mtmd_tokenize(context, chunks, text, pictures, 1) == 0
    found = [
        lib.mtmd_input_chunks_get(chunks, i) for i in range(lib.mtmd_input_chunks_size(chunks))
    ]
    image = lib.MTMD_INPUT_CHUNK_TYPE_IMAGE
    return chunks, next(one for one in found if lib.mtmd_input_chunk_get_type(one) == image)


def _mtmd_context(world: World) -> Any:
    model = world.first("llama_model")
    write(world.directory / "mmproj.gguf", lib.llama_model_n_embd(model))
    params = lib.mtmd_context_params_default()
    params.n_threads, params.use_gpu, params.warmup = 1, False, False
    return lib.mtmd_init_from_file(world.path("mmproj.gguf"), model, params)
