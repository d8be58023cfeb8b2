"""Following upstream: what changed between two llama.cpp, moving the pin, and proving the past.

It uses the generator in ``ffigen``, which does not depend on it.
"""
