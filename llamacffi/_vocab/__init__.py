"""The parts of `llamacffi.vocab`."""
