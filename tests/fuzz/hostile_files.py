"""The files that hostile.py works with: models of several kinds, adapters, vocabularies."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KINDS = ("llama", "mamba", "bert", "t5", "lfm2", "mimo2", "llama-embed")
VOCABULARIES = ("bert-bge", "llama-spm")


def prepare(directory: Path) -> None:
    """Write all of them."""
    sys.path.insert(0, str(ROOT))
    from llamacffi import demo
    from tests.facade import loras, random_models

    demo.write(directory / "demo.gguf")
    for kind in KINDS:
        random_models.write(directory / f"{kind}.gguf", kind)
    width = demo.width()
    weight = {"blk.0.attn_output.weight": (width, width)}
    loras.write_lora(directory / "demo-lora.gguf", weight, alpha=8.0)
    square = {"blk.0.attn_q.weight": (random_models.N_EMBD, random_models.N_EMBD)}
    loras.write_lora(directory / "lora.gguf", square, invocation=[1, 2])
    direction = [0.1] * random_models.N_EMBD
    loras.write_control_vector(directory / "control.gguf", {1: direction})
    for name in VOCABULARIES:
        file = ROOT / "vendor/llama.cpp/models" / f"ggml-vocab-{name}.gguf"
        if file.exists():
            shutil.copy(file, directory)
