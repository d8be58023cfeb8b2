"""The parts of `llamacffi.model`."""
