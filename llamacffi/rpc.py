"""Devices of other machines, over llama.cpp's RPC backend: the public door to `backend.rpc`.

``python -I -m llamacffi.rpc`` starts a server; ``--help`` shows its options.
"""

from .backend.rpc import DEFAULT_ENDPOINT, RpcServer, add_server, main

__all__ = ["DEFAULT_ENDPOINT", "RpcServer", "add_server"]

if __name__ == "__main__":
    main()
