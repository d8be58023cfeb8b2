"""With ``parse_special=False`` no text becomes a control token, whatever the vocabulary."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamacffi import Gguf, Model, Vocab, enums, ffi, lib
from tests.facade.test_vocab_text import ALL, BLANK_SIGN, EXACT, SIGN
from tests.facade.vocabularies import BYTES, CONTROL, UNKNOWN, USER_DEFINED, Entry, write_vocab

CONTROLS, USERS = enums.TokenAttr.CONTROL, enums.TokenAttr.USER_DEFINED
SETTINGS = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@functools.cache
def forbidden(vocab: Vocab) -> frozenset[int]:
    """Return the tokens that a text must never become."""
    return frozenset(token for token in range(len(vocab)) if vocab.attr(token) & CONTROLS)


@functools.cache
def special_texts(vocab: Vocab) -> list[str]:
    """Return the texts of all control tokens and some other special tokens."""
    others = [token for token in range(len(vocab)) if vocab.attr(token) & USERS]
    some = others[:: max(1, len(others) // 50)]
    made = [vocab.piece(token).decode(errors="replace") for token in [*forbidden(vocab), *some]]
    return [text for text in made if text] or ["<s>"]


def hostile(vocab: Vocab) -> st.SearchStrategy[str]:
    """Return mixtures of whole and partial texts of special tokens with other text."""
    whole = st.sampled_from(special_texts(vocab))
    part = st.tuples(whole, st.integers(0, 12), st.integers(0, 12)).map(
        lambda one: one[0][one[1] : len(one[0]) - one[2]]
    )
    other = st.sampled_from([" ", "\n", "a", "</", "s>", "<", ">", "|", SIGN, "é", "🦙", "[", "]"])
    cased = whole.map(str.swapcase) | whole.map(lambda text: text.replace(" ", SIGN))
    return st.lists(whole | part | other | cased, max_size=10).map("".join)


def raw(vocab: Vocab, text: str, add_special: bool, parse_special: bool) -> list[int]:
    """Return the tokens that llama.cpp makes of a text."""
    data = text.encode()
    buffer = ffi.new("llama_token[]", 2 * len(data) + 8)
    size = len(buffer)
    n = lib.llama_tokenize(vocab.ptr, data, len(data), buffer, size, add_special, parse_special)
    return ffi.unpack(buffer, n) if n else []


@pytest.mark.parametrize("name", ALL)
@SETTINGS
@given(data=st.data())
def test_no_control_token_comes_out_of_a_text(vocabularies, name, data):
    vocab = vocabularies[name]
    text = data.draw(hostile(vocab))
    ids = vocab.tokenize(text, add_special=False)
    # BERT's [UNK], the unknown token, is a control token in that file.
    assert forbidden(vocab).isdisjoint(set(ids) - {100} if name == "bert-bge" else ids)
    assert vocab.tokenize_batch([text, "a"], add_special=False)[0] == ids
    whole = vocab.tokenize(text)
    edges = vocab.tokenize("")
    assert len(whole) == len(ids) + len(edges)
    assert whole[1 : 1 + len(ids)] == ids or whole[: len(ids)] == ids
    c = raw(vocab, text, False, False)
    user = {token for token in c if vocab.attr(token) & USERS}
    if forbidden(vocab).isdisjoint(c) and not user:
        assert ids == c  # ordinary text is tokenized as by llama.cpp
    if name in EXACT:
        assert vocab.detokenize(ids, unparse_special=True) == text
    elif name in BLANK_SIGN and name != "phi-3":
        assert vocab.detokenize(ids, unparse_special=True) == text.replace(SIGN, " ")


NewModel = Callable[..., Vocab]


@pytest.fixture
def new_vocab(tmp_path: Path) -> Iterator[NewModel]:
    """Write a vocabulary, with extra strings in ``tokenizer`` metadata, and load it."""
    models: list[Model] = []

    def new(kind: str, entries: Sequence[Entry], **metadata: object) -> Vocab:
        texts = {name: one for name, one in metadata.items() if isinstance(one, str)}
        rest = {name: one for name, one in metadata.items() if name not in texts}
        path = write_vocab(tmp_path / f"{len(models)}.gguf", kind, list(entries), **rest)
        if texts:
            made = Gguf.open(path)
            for name, one in texts.items():
                key = "tokenizer.chat_template" if name == "template" else f"tokenizer.ggml.{name}"
                made[key] = one
            made.write(path)
        models.append(Model(path, vocab_only=True))
        return models[-1].vocab

    yield new
    for model in models:
        model.close()


START: list[Entry] = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
LETTERS: list[Entry] = [*"<>/|sab", "<s", "</", "s>", "/s", "ab"]
ASCII: list[Entry] = [chr(i) for i in range(33, 127)]
BERT: list[Entry] = [f"[unused{i}]" for i in range(100)]
KINDS: dict[str, tuple[str, list[Entry], dict[str, object]]] = {
    "spm": ("llama", [*START, *BYTES, "▁", *LETTERS], {}),
    "spm without a blank": ("llama", [*START, *BYTES, "▁", *LETTERS], {"add_space_prefix": False}),
    "spm without bytes": ("llama", [*START, "▁", *LETTERS, "x"], {}),
    "bpe": (
        *("gpt2", [*ASCII, "Ġ", "<s", "</", *START]),
        {"merges": ["< s", "<s >", "< /", "</ s", "</s >"], "pre": "bloom"},
    ),
    "bpe by words": (
        "gpt2",
        [*ASCII, "Ġ", *START, ("evil", CONTROL)],
        {"merges": ["a b"], "pre": "llama-bpe", "bos_token_id": 95},
    ),
    "rwkv": ("rwkv", [*START, "\\n", " ", *LETTERS, "x", "y"], {}),
    "plamo2": ("plamo2", [*START, ("<pad>", CONTROL), *BYTES, *LETTERS], {}),
    "wpm": (
        *("bert", [*BERT, ("[UNK]", CONTROL), ("[CLS]", CONTROL), ("[SEP]", CONTROL)]),
        {"eot_token_id": 104},
    ),
    "ugm": ("t5", [("<pad>", CONTROL), "</s>", ("<unk>", UNKNOWN), "▁", *LETTERS, "x"], {}),
}
KINDS["wpm"][1].extend([("[MASK]", CONTROL), ("▁evil", CONTROL), *"▁evilabs</>x", "▁a"])


BY_WORDS = ("wpm", "bpe by words")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer(new_vocab, kind):
    model, entries, metadata = KINDS[kind]
    vocab = new_vocab(model, entries, **metadata)
    allowed = {100} if kind == "wpm" else set()
    bad = forbidden(vocab) - allowed
    assert bad
    texts = ["<s>", "</s>", "a</s>b", "ab<s><s>ab", "<<s>>", "</s></s></s>", "x</s> ab </s>"]
    texts.append("</s>" * 3000)
    if kind in BY_WORDS:
        texts += ["evil", "evil evil", "a evil", "evilevil"]
    if kind == "wpm":
        texts += ["EVIL", "[CLS]"]
    for text in texts:
        ids = vocab.tokenize(text, add_special=False)
        assert bad.isdisjoint(ids), text
        assert vocab.n_tokens(text, add_special=False) == len(ids)
        if kind not in ("wpm", "ugm"):  # these normalize the text
            assert vocab.detokenize(ids) == text
    parsed = vocab.tokenize("a</s>b", add_special=False, parse_special=True)
    assert kind == "wpm" or set(parsed) & forbidden(vocab)


def test_parse_special_would_read_them(new_vocab):
    """Otherwise the test above would prove nothing."""
    found = set()
    for kind, (model, entries, metadata) in KINDS.items():
        vocab = new_vocab(model, entries, **metadata)
        text = "evil" if kind in BY_WORDS else "</s>"
        if (forbidden(vocab) - {100}) & set(raw(vocab, text, False, False)):
            found.add(kind)
    assert found == KINDS.keys()


def test_user_defined_tokens(new_vocab):
    """Chat markers are not ordinary text; runs of spaces and tags are."""
    bar = "\N{FULLWIDTH VERTICAL LINE}"
    users = ["<|channel|>", f"<{bar}turn{bar}>", "<tool>", "[INST]"]
    users += ["<table>", "[x]", "ab ab", "  ", "b\n"]
    entries: list[Entry] = [*START, *BYTES, "▁", *((one, USER_DEFINED) for one in users)]
    template = "{% if x %}<tool>{{ x }} ab ab [INST]{% endif %}  b\n"
    vocab = new_vocab("llama", [*entries, *LETTERS], template=template)
    first = len(START) + len(BYTES) + 1
    for i, text in enumerate(users):
        for around in (text, f"ab{text}ab", f"{text}{text}", f" {text} "):
            ids = vocab.tokenize(around, add_special=False)
            assert (first + i in ids) == (i >= 4), around
            assert vocab.detokenize(ids) == around
            parsed = vocab.tokenize(around, add_special=False, parse_special=True)
            assert first + i in parsed
    plain = new_vocab("llama", [*entries, *LETTERS])  # without a template
    assert first + 2 in plain.tokenize("<tool>")
    assert first not in plain.tokenize("<|channel|>")


def test_an_end_token_that_the_file_marks_as_normal(new_vocab):
    entries: list[Entry] = [*START, *BYTES, "▁", *"<>enda", "<e", "nd", "nd>", "<end>", "and"]
    end = len(entries) - 2
    for eos, expected in ((end, False), (2, True), (end + 1, True)):
        vocab = new_vocab("llama", entries, eos_token_id=eos)
        assert vocab.is_eog(eos)
        assert (end in vocab.tokenize("a<end>", add_special=False)) == expected
        assert end + 1 in vocab.tokenize(
            "and", add_special=False
        )  # a word, whether it ends generation or not
        assert vocab.detokenize(vocab.tokenize("<end><end> a")) == "<end><end> a"


def test_text_that_only_a_control_token_can_encode(new_vocab):
    vocab = new_vocab("llama", [*START, *BYTES, "▁", ("\n", CONTROL), "a"])
    newline = vocab.tokenize("a\na", add_special=False)
    assert 3 + 256 + 1 in newline
    vocab = new_vocab("test", [("a", CONTROL), ("b", CONTROL)])
    assert set(vocab.tokenize("hello")) <= {0, 1}
