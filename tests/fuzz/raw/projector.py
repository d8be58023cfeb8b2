"""A tiny model of pictures for the built-in model, so that mtmd has something to do."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

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
