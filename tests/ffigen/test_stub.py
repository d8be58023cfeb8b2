"""The generated types, as mypy sees them: what is right passes, what is wrong is found."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Each line that ends in `#! code` must be found by mypy, with that code; no other line may be.
SNIPPETS = """\
from typing import reveal_type
from llamacffi import Context, Model, enums, ffi, lib

model = Model("model.gguf", n_gpu_layers=0, check_tensors=True)
Model("model.gguf", n_gpu_layer=0)  #! call-arg
Model("model.gguf", n_gpu_layers="all")  #! arg-type
Model("model.gguf", check_tensors=None)  #! arg-type
context = Context(model, n_ctx=64)
Context(model, n_ctx=6.5)  #! arg-type
Context(model, pooling_type=enums.PoolingType.MEAN)
Context(model, pooling_type="MEAN")

model_params = lib.llama_model_default_params()
raw_model = lib.llama_model_load_from_file(b"model.gguf", model_params)
raw_context = lib.llama_init_from_model(raw_model, lib.llama_context_default_params())
lib.llama_init_from_model(raw_context, lib.llama_context_default_params())  #! arg-type
lib.llama_init_from_model(raw_model, model_params)  #! arg-type
lib.llama_model_load_from_file("model.gguf", model_params)  #! arg-type
lib.llama_decode(1, 2)  #! arg-type
lib.llama_decode(raw_context)  #! call-arg
lib.llama_decode(raw_model, lib.llama_batch_init(1, 0, 1))  #! arg-type
code: int = lib.llama_decode(raw_context, lib.llama_batch_init(1, 0, 1))
lib.llama_no_such_function()  #! attr-defined
lib.llama_n_ctx(ctx=raw_context)  #! call-arg
lib.LLAMA_TOKEN_NULL + 1
lib.LLAMA_TOKEN_NULL = 3  #! misc
lib.LLAMA_TOKEN_NULL.upper()  #! attr-defined
lib.GGML_TYPE_F32 + lib.LLAMA_DEFAULT_SEED
model_params.n_gpu_layers + 1
model_params.no_such_field  #! attr-defined
model_params.n_gpu_layers.upper()  #! attr-defined
tokens = ffi.new("llama_token[4]")
lib.llama_tokenize(lib.llama_model_get_vocab(raw_model), b"text", 4, tokens, 4, True, False)
lib.llama_tokenize(raw_model, b"text", 4, tokens, 4, True, False)  #! arg-type
logits = lib.llama_get_logits(raw_context)
total: float = logits[0] + 1.0
text: str = lib.llama_print_system_info()  #! assignment
answer: str = lib.llama_supports_mmap()  #! assignment
lib.ggml_abort(b"file", 1, b"%d", ffi.cast("int", 3))
lib.ggml_abort(b"file", 1, b"%d", 3)  #! arg-type
enums.GgmlType.F32.value + 1
enums.GgmlType.NO_SUCH  #! attr-defined
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory, root) -> dict[int, set[str]]:
    """Run mypy once; returns the codes by line."""
    directory = tmp_path_factory.mktemp("mypy")
    snippets = directory / "snippets.py"
    snippets.write_text(SNIPPETS)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file="]
    command += [f"--cache-dir={directory / 'cache'}", "--no-error-summary", str(snippets)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert result.stderr == ""
    found: dict[int, set[str]] = {}
    for line in result.stdout.splitlines():
        path, number, kind, message = line.split(":", 3)
        if kind.strip() == "error" and path.endswith("snippets.py"):
            found.setdefault(int(number), set()).add(message.rpartition("[")[2].rstrip("]"))
    return found


def test_mypy_finds_what_is_wrong_and_nothing_else(report):
    expected = {
        number: {line.rpartition("#! ")[2]}
        for number, line in enumerate(SNIPPETS.splitlines(), 1)
        if "#! " in line
    }
    assert len(expected) > 15
    assert report == expected
