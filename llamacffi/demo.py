"""The built-in model: created on first use, and so simple that its answers are known.

It has the llama architecture, but its weights make it exactly a bigram model: the embedding of a
token is a one-hot vector of its *state* (its word), attention and feed-forward add zero, and the
output matrix holds, for each state, the log-probability of each next token.  Its logits are
therefore known in closed form (`log_probabilities`), so that tests of samplers, grammars and caches
have exact numbers to compare with.

The bigrams are counted in the text below.
"""

from __future__ import annotations

import hashlib
import math
import os
import secrets
import stat
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ._core.atomic import replacing
from ._core.opening import open_owned
from ._core.text import checked_path
from ._native import lib
from .errors import LoadError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from .gguf.gguf import Gguf

TEXT = """
The llama walks over the hill and looks at the river. The river runs down the hill to the sea.
A small llama sleeps in the shade of the old tree. The old tree stands by the river and waits.
In the morning the sun comes over the hill, and the llama wakes. The llama eats the green grass.
The wind sings in the old tree, and the birds sing with the wind. A bird asks the llama a question.
The llama thinks, looks at the sky, and says nothing. The sky is wide and the night is quiet.
At night the moon looks at the river, and the river looks at the moon. The small llama dreams.
It dreams of a hill that walks, of a tree that sings, and of words that come one by one.
One word follows the next word, as one llama follows the next llama over the hill.
The words know only the word before them, and the llama knows only the path before it.
In the evening the llama comes home, and the wind comes with it. The end is near the start.
"""

# All continuations that the text lacks share this probability, so that every logit is finite.
UNSEEN = 1e-6
N_CTX = 2048
HEAD = 32  # the width of an attention head
EPSILON = 1e-5  # of the RMS normalization
VERSION = 1  # part of the file name: raise it when the model changes
# Checksum of the file, except where logarithms are rounded differently.
SHA256 = "d9301666f737f4f3644106cb8471c7c24cac844f4a7de2826be946c05bb252b2"
MOST_BYTES = 2**22  # larger than the file
# Do not follow a link, and do not block on a pipe.
FLAGS = sum(getattr(os, name, 0) for name in ("O_BINARY", "O_NONBLOCK", "O_NOFOLLOW"))


@dataclass(frozen=True)
class Entry:
    """One token of the vocabulary."""

    text: str
    score: float
    type: int
    state: int
    """The row of the transition table that follows it."""


def path() -> Path:
    """Return the path of the model in the user's cache; the file is written on first use.

    A damaged or different file there is replaced.

    Raises:
        LoadError: The cache is not writable.
    """
    directory = cache_dir()
    file = directory / f"demo-v{VERSION}.gguf"
    cached = _read(file)
    if cached is not None and hashlib.sha256(cached).hexdigest() == SHA256:
        return file
    content = to_bytes()
    if cached == content:  # this machine rounds logarithms differently
        return file
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Not `replacing(file)`: that would follow a link that someone has planted there.
        own = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        try:
            with replacing(own) as part:
                part.write(content)
            os.replace(own, file)  # another process may be doing the same
        finally:
            own.unlink(missing_ok=True)
    except OSError as error:
        reason = f"cannot write the built-in model to the cache: {error.strerror}"
        raise LoadError(error.errno, reason, os.fspath(directory)) from error
    return file


def _read(file: Path) -> bytes | None:
    """Return the content of a file; None unless it is a regular file of reasonable size."""
    try:
        with open_owned("r", os.open, file, os.O_RDONLY | FLAGS) as stream:
            status = os.fstat(stream.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES:
                return stream.read(MOST_BYTES)
    except OSError:
        pass
    return None


def cache_dir() -> Path:
    """Return the cache directory."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # the XDG standard says to ignore it then
            base = "~/.cache"
    return Path(base).expanduser() / "llamacffi"


def words() -> list[str]:
    """Return the words of the text: each starts with a space, except punctuation."""
    spaced = TEXT.replace(".", " . ").replace(",", " , ").split()
    return [word if word in ".," else f" {word}" for word in spaced]


@cache
def vocabulary() -> tuple[Entry, ...]:
    """Return the tokens: three special ones, the 256 bytes, and the words with all their prefixes.

    A tokenizer of this kind merges pairs of pieces, from the first character on, so every prefix of
    a word must be a token.  Tokens other than words lead to state 0, the start of a text.
    """
    lexicon = sorted(set(words()))
    states = {word: i for i, word in enumerate(lexicon, start=1)}
    entries = [
        Entry("<unk>", 0.0, lib.LLAMA_TOKEN_TYPE_UNKNOWN, 0),
        Entry("<s>", 0.0, lib.LLAMA_TOKEN_TYPE_CONTROL, 0),
        Entry("</s>", 0.0, lib.LLAMA_TOKEN_TYPE_CONTROL, 0),
        *(Entry(f"<0x{i:02X}>", 0.0, lib.LLAMA_TOKEN_TYPE_BYTE, 0) for i in range(256)),
    ]
    pieces = {word[:n] for word in lexicon for n in range(1, len(word) + 1)}
    pieces |= {char for word in lexicon for char in word}
    for piece in sorted(pieces):
        text = piece.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
        # A longer piece has a higher score, so that words are merged from left to right.
        entries.append(
            Entry(text, float(len(piece)), lib.LLAMA_TOKEN_TYPE_NORMAL, states.get(piece, 0))
        )
    return tuple(entries)


@cache
def log_probabilities() -> npt.NDArray[np.float32]:
    """Return the transition table of the model.

    Returns:
        ``[n_states, n_vocab]`` float32: the log-probability of each token after each state
        (`Entry.state`).  The model's logits after a token are the row of its state.
    """
    import numpy as np

    entries = vocabulary()
    ids = {entry.text: i for i, entry in enumerate(entries)}
    sequence = [ids[word.replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")] for word in words()]
    n_states = max(entry.state for entry in entries) + 1
    counts = [Counter[int]() for _ in range(n_states)]
    counts[0][sequence[0]] += 1
    for token, after in zip(sequence, [*sequence[1:], ids["</s>"]], strict=True):
        counts[entries[token].state][after] += 1
    table = np.full((n_states, len(entries)), UNSEEN / len(entries))
    for row, count in zip(table, counts, strict=True):
        for token, n in count.items():
            row[token] += (1 - UNSEEN) * n / count.total()
    logs: npt.NDArray[np.float32] = np.log(table).astype(np.float32)
    logs.flags.writeable = False
    return logs


def write(file: Path) -> None:
    """Write the model to a file, which appears only when it is complete.

    Raises:
        OSError: The file cannot be written.
    """
    with _gguf() as gguf:
        gguf.write(checked_path(file, "file"))


def to_bytes() -> bytes:
    """Return the model as the content of a GGUF file."""
    with _gguf() as gguf:
        return gguf.to_bytes()


def width() -> int:
    """Return the embedding size: the number of states, rounded up to whole attention heads."""
    return math.ceil(len(log_probabilities()) / HEAD) * HEAD


def weights() -> dict[str, npt.NDArray[np.float32]]:
    """Return the tensors by their names in GGUF; rows are outputs."""
    import numpy as np

    table, n = log_probabilities(), width()
    n_states, n_vocab = table.shape
    embedding = np.zeros((n_vocab, n), np.float32)
    embedding[range(n_vocab), [entry.state for entry in vocabulary()]] = 1
    output = np.zeros((n_vocab, n), np.float32)
    output[:, :n_states] = table.T
    # RMS normalization divides a one-hot vector of size n by sqrt(1/n + epsilon): undo that.
    norm = np.full(n, math.sqrt(1 / n + EPSILON), np.float32)
    zeros, ones = np.zeros((n, n), np.float32), np.ones(n, np.float32)
    layer = {
        "attn_norm": ones,
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), zeros),
        "ffn_norm": ones,
        **dict.fromkeys(("ffn_gate", "ffn_up"), zeros[:HEAD]),
        "ffn_down": np.zeros((n, HEAD), np.float32),
    }
    return {
        "token_embd.weight": embedding,
        **{f"blk.0.{name}.weight": array for name, array in layer.items()},
        "output_norm.weight": norm,
        "output.weight": output,
    }


def _gguf() -> Gguf:
    """Return the model, with the metadata that the llama architecture needs."""
    from .gguf.gguf import Gguf

    entries = vocabulary()
    gguf = Gguf.new()
    gguf.update(
        {
            "general.architecture": "llama",
            "general.name": "llamacffi demo (bigrams)",
            "tokenizer.ggml.model": "llama",
            "llama.context_length": N_CTX,
            "llama.embedding_length": width(),
            "llama.feed_forward_length": HEAD,
            "llama.block_count": 1,
            "llama.attention.head_count": width() // HEAD,
            "llama.rope.dimension_count": HEAD,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "llama.attention.layer_norm_rms_epsilon": EPSILON,
            "tokenizer.ggml.tokens": [entry.text for entry in entries],
            "tokenizer.ggml.scores": [entry.score for entry in entries],
            "tokenizer.ggml.token_type": [entry.type for entry in entries],
        }
    )
    for name, array in weights().items():
        gguf.add_tensor(name, array)
    return gguf
