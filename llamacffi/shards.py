"""Models in several files, to split and to merge: the public door to `gguf.shards`."""

from .gguf.shards import merge, split

__all__ = ["merge", "split"]
