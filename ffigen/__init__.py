"""Generator of the llama.cpp binding: the pin, the parser and the renderer behind build_ffi.py."""
