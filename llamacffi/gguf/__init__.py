"""GGUF files: metadata and tensors, to read, to write and to edit."""

from .gguf import Gguf
from .tensors import GgufTensor
from .types import dequantize_array, quantize_array

__all__ = ["Gguf", "GgufTensor", "dequantize_array", "quantize_array"]
