"""The parts of `llamacffi.generation`."""
