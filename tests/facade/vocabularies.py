"""Vocabularies written for a test: files that have nothing else."""

from __future__ import annotations

from pathlib import Path

import gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = (
    *(gguf.TokenType.NORMAL, gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL),
    *(gguf.TokenType.USER_DEFINED, gguf.TokenType.BYTE),
)

Entry = tuple[str, gguf.TokenType] | str
"""The text of a token, and its kind if that is not NORMAL."""

BYTES: list[Entry] = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]


def write_vocab(path: Path, kind: str, entries: list[Entry], **metadata: object) -> Path:
    """Write the vocabulary of a kind of tokenizer, with metadata under ``tokenizer.ggml``.

    Scores fall, so that of two tokens the one before is the better.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    if entries:
        pairs = [(one, NORMAL) if isinstance(one, str) else one for one in entries]
        writer.add_token_list([text for text, _ in pairs])
        writer.add_token_types([token_type for _, token_type in pairs])
        writer.add_token_scores([-float(i) for i in range(len(pairs))])
    for name, value in metadata.items():
        key = f"tokenizer.ggml.{name}"
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case list():
                writer.add_array(key, value)
            case _:
                raise TypeError(f"{name}={value!r}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path
