"""llama.cpp's log goes to `logging` and nowhere else."""

from __future__ import annotations

import logging
import threading

import pytest

from llamacffi import LoadError, Model, lib, log

LEVELS = {
    "debug": (lib.GGML_LOG_LEVEL_DEBUG, logging.DEBUG),
    "info": (lib.GGML_LOG_LEVEL_INFO, logging.INFO),
    "warn": (lib.GGML_LOG_LEVEL_WARN, logging.WARNING),
    "error": (lib.GGML_LOG_LEVEL_ERROR, logging.ERROR),
}


@pytest.fixture
def say():
    """Log as llama.cpp does: through the callback that it has."""
    from llamacffi import ffi

    callback, data = ffi.new("ggml_log_callback *"), ffi.new("void **")
    lib.ggml_log_get(callback, data)

    def write(level: int, text: str) -> None:
        callback[0](level, text.encode(), data[0])

    log.drain()
    yield write
    log.drain()


@pytest.fixture
def lines(caplog):
    """Drain, and return level and text of what came."""
    caplog.set_level(logging.DEBUG, "llamacffi")

    def read() -> list[tuple[int, str]]:
        caplog.clear()
        log.drain()
        return [(r.levelno, r.getMessage()) for r in caplog.records if r.name == "llamacffi"]

    return read


def test_silent_by_default(run_python, demo_path, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(demo_path.read_bytes()[:5000])
    code = """
        import sys
        from llamacffi import Context, LoadError, Model, generate
        with Model(sys.argv[1]) as model, Context(model, n_ctx=64) as context:
            generate(context, "The", max_tokens=3).text()
        try:
            Model(sys.argv[2])
        except LoadError:
            print("not loaded")
    """
    result = run_python(code, demo_path, broken)
    assert (result.returncode, result.stdout, result.stderr) == (0, "not loaded\n", "")


def test_what_a_load_says(lines, caplog, demo_path):
    caplog.set_level(logging.DEBUG, "llamacffi")
    with Model(demo_path):
        pass
    records = [record for record in caplog.records if record.name == "llamacffi"]
    assert any("general.architecture" in record.getMessage() for record in records)
    assert {record.levelno for record in records} <= {level for _, level in LEVELS.values()}


@pytest.mark.parametrize(("level", "expected"), LEVELS.values(), ids=LEVELS.keys())
def test_levels(say, lines, level, expected):
    say(level, "one line\n")
    assert lines() == [(expected, "one line")]
    assert lines() == []


def test_pieces_become_lines(say, lines):
    say(lib.GGML_LOG_LEVEL_WARN, "loading")
    for piece in (".", ".", " done\n"):
        say(lib.GGML_LOG_LEVEL_CONT, piece)
    say(lib.GGML_LOG_LEVEL_INFO, "as it is: 100% %s {}\n")
    say(lib.GGML_LOG_LEVEL_ERROR, "without an end")
    say(lib.GGML_LOG_LEVEL_INFO, "next\n")
    assert lines() == [
        (logging.WARNING, "loading.. done"),
        (logging.INFO, "as it is: 100% %s {}"),
        (logging.ERROR, "without an end"),
        (logging.INFO, "next"),
    ]


def test_lines_of_one_message_have_its_level(say, lines):
    for _ in range(lib.LLAMACFFI_LOG_CAPACITY):
        say(lib.GGML_LOG_LEVEL_ERROR, "old\n")
    lines()
    say(lib.GGML_LOG_LEVEL_INFO, "one\ntwo\nthree\n")
    assert lines() == [(logging.INFO, text) for text in ("one", "two", "three")]


def test_a_long_line_and_one_that_is_not_utf8(say, lines):
    from llamacffi import ffi

    say(lib.GGML_LOG_LEVEL_INFO, "x" * 5000 + "\n")
    callback, data = ffi.new("ggml_log_callback *"), ffi.new("void **")
    lib.ggml_log_get(callback, data)
    callback[0](lib.GGML_LOG_LEVEL_INFO, b"caf\xe9\n", data[0])
    assert [text for _, text in lines()] == ["x" * 5000, "caf\ufffd"]


def test_errors_carry_the_last_lines(say, lines):
    say(lib.GGML_LOG_LEVEL_WARN, "forwarded before\n")
    lines()
    for i in range(20):
        say(lib.GGML_LOG_LEVEL_WARN, f"warning {i}\n")
        say(lib.GGML_LOG_LEVEL_INFO, f"info {i}\n")
    error = log.with_log(LoadError("cannot load"))
    text = "\n".join([str(error), *getattr(error, "__notes__", [])])
    assert "warning 19" in text
    assert f"warning {20 - log.NOTE_LINES}" in text
    assert f"warning {19 - log.NOTE_LINES}\n" not in text
    assert "info" not in text
    assert "before" not in text
    assert lines() == []  # forwarded too


def test_an_error_without_lines_has_no_note(say):
    error = log.with_log(LoadError("plain"))
    assert not getattr(error, "__notes__", [])
    assert str(error) == "plain"


def test_nothing_is_lost_between_threads(say, lines, caplog):
    caplog.set_level(logging.DEBUG, "llamacffi")
    caplog.clear()

    def work(name: int) -> None:
        for i in range(200):
            say(lib.GGML_LOG_LEVEL_INFO, f"{name}:{i}\n")
            log.drain()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.drain()
    texts = [record.getMessage() for record in caplog.records]
    assert sorted(texts) == sorted(f"{name}:{i}" for name in range(4) for i in range(200))


def test_lost_lines_are_counted(say, lines):
    more = 500
    for i in range(lib.LLAMACFFI_LOG_CAPACITY + more):
        say(lib.GGML_LOG_LEVEL_INFO, f"{i}\n")
    got = lines()
    assert got[0] == (logging.WARNING, f"{more} lines of llama.cpp's log were lost")
    assert [text for _, text in got[1:]] == [
        str(i) for i in range(more, lib.LLAMACFFI_LOG_CAPACITY + more)
    ]


def test_a_handler_may_use_llama_cpp(say, lines, demo_path):
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "go":
                Model(demo_path, vocab_only=True).close()

    handler = Handler()
    log.logger.addHandler(handler)
    try:
        say(lib.GGML_LOG_LEVEL_INFO, "go\n")
        assert (logging.INFO, "go") in lines()
    finally:
        log.logger.removeHandler(handler)
