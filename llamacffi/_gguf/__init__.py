"""The parts of `llamacffi.gguf`."""
