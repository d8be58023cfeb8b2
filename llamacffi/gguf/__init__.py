"""GGUF files: read, edit and write their metadata and tensors.

    with Gguf.open("model.gguf") as gguf:
        gguf["general.name"] = "mine"
        print(gguf["llama.context_length"], gguf.tensors["output.weight"].shape)
        gguf.write("mine.gguf")

The metadata are a mapping, held by llama.cpp.  Tensor data stay in the mapped file, or in your
arrays, until they are written.
"""

from .gguf import Gguf
from .tensors import GgufTensor
from .types import dequantize_array, quantize_array

__all__ = ["Gguf", "GgufTensor", "dequantize_array", "quantize_array"]
