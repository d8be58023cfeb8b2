"""Models split into several files: split one, and merge the files again.

The first file holds all metadata; llama.cpp finds the others by their names.
"""

from .gguf.shards import merge, split

__all__ = ["merge", "split"]
