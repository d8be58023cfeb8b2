"""Devices of other machines, through llama.cpp's RPC backend.

`RpcServer` starts a server that lends this machine's devices; `add_server` adds the devices of a
server elsewhere.  Models then use them like a GPU.  To start a server from the command line, run
``python -I -m llamacffi.rpc`` (``-I`` keeps Python from importing files of the current directory);
``--help`` lists its options.

**Run servers on private networks only.**  The protocol has neither authentication nor encryption.
Anyone who can reach the port can read what other clients left on the devices, fill the memory and
the ``cache_dir``, stop the process, and, with a crafted message, take it over with all the rights
of its user.  Anyone who can watch the network can read and change prompts, answers and weights.
Clients must trust their server in the same way.  Servers therefore listen on 127.0.0.1 unless told
otherwise; to connect from elsewhere, use a tunnel such as ``ssh -L``.

A server serves one client (one process) at a time.  If it stops while a model uses it, llama.cpp
aborts the client process too (SIGABRT), because the connection belongs to a thread whose failures
cannot be caught.  A server that this process started and uses therefore keeps running until it is
closed or the process exits; a server elsewhere must outlive the models that use it.
"""

from .backend.rpc import DEFAULT_ENDPOINT, RpcServer, add_server, main

__all__ = ["DEFAULT_ENDPOINT", "RpcServer", "add_server"]

if __name__ == "__main__":
    main()
