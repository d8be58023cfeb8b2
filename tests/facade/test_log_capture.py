"""What llama.cpp logs can be collected, by block and by thread, and left out by level."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from llamacffi import ArgumentError, LoadError, Model, NativeError, capture_logs, ffi, lib, log

DEBUG, INFO, WARN, ERROR = (
    *(lib.GGML_LOG_LEVEL_DEBUG, lib.GGML_LOG_LEVEL_INFO),
    *(lib.GGML_LOG_LEVEL_WARN, lib.GGML_LOG_LEVEL_ERROR),
)
CONT, NONE = lib.GGML_LOG_LEVEL_CONT, lib.GGML_LOG_LEVEL_NONE

Say = Callable[[int, str], None]


@pytest.fixture
def say() -> Iterator[Say]:
    """Log as llama.cpp does: through the callback that it has."""
    callback, data = ffi.new("ggml_log_callback *"), ffi.new("void **")
    lib.ggml_log_get(callback, data)
    log.drain()
    yield lambda level, text: callback[0](level, text.encode(), data[0])
    log.drain()


@pytest.fixture
def forwarded(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[int, str]]]:
    """Return level and text of what the logger has got."""
    caplog.set_level(logging.DEBUG, "llamacffi")
    log.drain()
    caplog.clear()

    def read() -> list[tuple[int, str]]:
        log.drain()
        return [(r.levelno, r.getMessage()) for r in caplog.records if r.name == "llamacffi"]

    return read


@pytest.fixture
def as_before() -> Iterator[None]:
    """Set the level back."""
    before = log.get_level()
    yield
    log.set_level(before)


def in_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


# --- Capture -------------------------------------------------------------------------------------


def test_a_block_gets_its_lines(say, forwarded):
    say(INFO, "before\n")
    with capture_logs() as lines:
        say(INFO, "one\n")
        assert [line.text for line in lines] == ["one"]  # it can be read at once
        say(WARN, "two\n")
    say(INFO, "after\n")
    assert len(lines) == 2
    assert (lines[0].level, lines[-1].level) == (logging.INFO, logging.WARNING)
    assert lines.text == "one\ntwo\n"
    assert [line.text for line in lines[:1]] == ["one"]
    assert repr(lines) == "<CapturedLog of 2 lines>"
    assert lines.n_lost == 0
    assert [text for _, text in forwarded()] == ["before", "one", "two", "after"]


def test_what_a_load_says(demo_path):
    with capture_logs("INFO") as lines, Model(demo_path):
        pass
    assert "general.architecture" in lines.text
    assert {line.level for line in lines} <= {logging.INFO, logging.WARNING}
    assert {line.thread for line in lines} == {lib.llamacffi_log_thread()}
    times = [line.time for line in lines]
    assert times == sorted(times)
    assert 0 <= time.time() - times[-1] < 60


def test_lines_may_be_kept_from_the_logger(say, forwarded):
    with capture_logs(forward=False) as quiet:
        say(INFO, "quiet\n")
    with capture_logs("ERROR", forward=False) as errors:
        say(INFO, "no error\n")
        say(ERROR, "error\n")
    assert (quiet.text, errors.text) == ("quiet\n", "error\n")
    assert forwarded() == [(logging.INFO, "no error")]


def test_blocks_may_be_nested(say, forwarded):
    with capture_logs() as outer:
        say(INFO, "1\n")
        with capture_logs(forward=False) as inner:
            say(INFO, "2\n")
            with capture_logs("WARNING") as innermost:
                say(INFO, "3\n")
                say(WARN, "4\n")
            say(INFO, "5\n")
        say(INFO, "6\n")
    texts = ["".join(line.text for line in one) for one in (outer, inner, innermost)]
    assert texts == ["123456", "2345", "4"]
    assert [text for _, text in forwarded()] == ["1", "6"]


def test_a_block_that_raises_is_over(say):
    with pytest.raises(KeyError), capture_logs() as lines:  # noqa: PT012
        say(INFO, "in\n")
        raise KeyError
    say(INFO, "out\n")
    assert lines.text == "in\n"


def test_all_threads_or_one(say):
    with capture_logs() as all_lines, capture_logs(thread=True) as own_lines:
        say(INFO, "mine\n")
        in_thread(lambda: say(INFO, "another's\n"))
        in_thread(log.drain)  # which changes nothing
        say(INFO, "mine too\n")
    assert all_lines.text == "mine\nanother's\nmine too\n"
    assert own_lines.text == "mine\nmine too\n"
    assert len({line.thread for line in all_lines}) == 2


def test_each_thread_captures_its_own(say):
    """While all of them log and drain."""
    barrier, results = threading.Barrier(6), {}

    def work(name: int) -> None:
        barrier.wait()
        with capture_logs(thread=True) as lines:
            for i in range(100):
                say(INFO, f"{name}:{i}\n")
                if i % 7 == name:
                    log.drain()
        results[name] = [line.text for line in lines]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {name: [f"{name}:{i}" for i in range(100)] for name in range(6)}


def test_lost_lines_are_counted(say):
    more = 10
    with capture_logs() as lines:
        for i in range(lib.LLAMACFFI_LOG_CAPACITY + more):
            say(DEBUG, f"{i}\n")
    assert (len(lines), lines.n_lost) == (lib.LLAMACFFI_LOG_CAPACITY, more)
    assert lines[0].text == str(more)


@pytest.mark.parametrize(("level", "error"), [("LOUD", ArgumentError), (None, TypeError)])
def test_an_unknown_level(level, error):
    for call in (log.set_level, lambda one: capture_logs(one).__enter__()):
        with pytest.raises(error):
            call(level)


# --- Levels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "number", "kept"),
    [
        ("debug", 10, "diwe"),
        ("INFO", 20, "iwe"),
        (logging.WARNING, 30, "we"),
        (25, 25, "we"),
        ("ERROR", 40, "e"),
        ("CRITICAL", 50, ""),
        (0, 0, "diwe"),
    ],
)
@pytest.mark.usefixtures("as_before")
def test_lower_levels_are_not_even_written(say, forwarded, level, number, kept):
    log.set_level(level)
    assert log.get_level() == number
    before = lib.llamacffi_log_count()
    for one, text in ((DEBUG, "d\n"), (INFO, "i\n"), (WARN, "w\n"), (ERROR, "e\n")):
        say(one, text)
    assert lib.llamacffi_log_count() - before == len(kept)
    assert "".join(text for _, text in forwarded()) == kept


@pytest.mark.usefixtures("as_before")
def test_the_rest_of_a_dropped_line_is_dropped(say, forwarded):
    log.set_level("WARNING")
    say(INFO, "loading")
    say(CONT, "...")
    say(CONT, " done\n")
    say(WARN, "well")
    say(CONT, ", well\n")
    say(NONE, "no level is info\n")
    assert forwarded() == [(logging.WARNING, "well, well")]


@pytest.mark.usefixtures("as_before")
def test_a_block_gets_what_the_level_keeps_from_the_logger(say, forwarded):
    log.set_level("ERROR")
    with capture_logs("INFO") as lines:
        say(DEBUG, "debug\n")
        say(INFO, "info\n")
        say(ERROR, "error\n")
    say(INFO, "after\n")
    assert lines.text == "info\nerror\n"
    assert forwarded() == [(logging.ERROR, "error")]


def test_the_logger_is_one_like_others(say, forwarded, caplog):
    """Its level and its filters do what they always do."""

    class NoGraphs(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return "graph" not in record.getMessage()

    caplog.set_level(logging.WARNING, "llamacffi")
    no_graphs = NoGraphs()
    log.logger.addFilter(no_graphs)
    try:
        say(INFO, "info\n")
        say(WARN, "CUDA graph\n")
        say(WARN, "other\n")
        assert forwarded() == [(logging.WARNING, "other")]
    finally:
        log.logger.removeFilter(no_graphs)


# --- Threads -------------------------------------------------------------------------------------


def test_pieces_of_two_threads_are_not_mixed(say, forwarded):
    say(WARN, "loading")
    in_thread(lambda: say(ERROR, "help\n"))
    say(CONT, " done\n")
    assert forwarded() == [
        (logging.WARNING, "loading"),
        (logging.ERROR, "help"),
        (logging.WARNING, " done"),
    ]


def notes(error: BaseException) -> str:
    """Return all that an error says, on any Python."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def test_an_error_has_the_lines_of_its_thread_alone(say):
    def other() -> None:
        say(ERROR, "of another model\n")
        log.drain()  # does not take the lines away

    say(ERROR, "of this\n")
    in_thread(other)
    text = notes(log.with_log(LoadError("cannot load")))
    assert "of this" in text
    assert "another" not in text


def test_an_error_has_no_lines_of_calls_before(say):
    say(WARN, "of a call that was fine\n")
    in_thread(log.drain)
    log.drain()
    assert notes(log.with_log(LoadError("cannot load"))) == "cannot load"


def test_an_error_for_a_native_one_has_its_lines(say):
    def fail() -> None:
        try:
            say(ERROR, "the reason\n")
            lib.ggml_backend_reg_get(10**6)
        except NativeError as error:
            assert "the reason" in notes(error)  # noqa: PT017
            raise log.with_log(LoadError("cannot load")) from error

    with pytest.raises(LoadError) as caught:
        fail()
    assert "the reason" in notes(caught.value)
    assert notes(log.with_log(LoadError("later"))) == "later"


def test_errors_of_several_loads_at_once(demo_path, tmp_path):
    """Each has its own reason."""
    whole, errors = demo_path.read_bytes(), {}
    for i in range(6):
        (tmp_path / f"{i}.gguf").write_bytes(whole[: 4000 + 1000 * i])

    def work(i: int) -> None:
        for _ in range(5):
            with pytest.raises(LoadError) as caught:
                Model(tmp_path / f"{i}.gguf")
            errors.setdefault(i, set()).add(notes(caught.value))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, texts in errors.items():
        assert len(texts) == 1  # the same each time
        assert all(f"{other}.gguf" not in str(texts) for other in range(6) if other != i)


class OldError(Exception):
    """As in Python 3.10, whose exceptions have no notes."""

    @property
    def add_note(self) -> None:
        raise AttributeError


def test_an_error_without_notes_has_the_lines_in_its_text(say):
    say(ERROR, "the reason\n")
    error = log.with_log(OldError("cannot load", 7))
    assert error.args == ("cannot load\nllama.cpp's log:\n  the reason", 7)


# --- The callback --------------------------------------------------------------------------------


def test_a_callback_of_ones_own_and_ours_again(demo_path, forwarded):
    """As C programs do it: get, set, set back."""
    ours, data, seen = ffi.new("ggml_log_callback *"), ffi.new("void **"), []
    lib.llama_log_get(ours, data)

    @ffi.callback("void(enum ggml_log_level, const char *, void *)")
    def mine(level: int, text: object, _data: object) -> None:
        seen.append((level, ffi.string(text).decode()))

    lib.llama_log_set(mine, ffi.NULL)
    try:
        Model(demo_path, vocab_only=True).close()
    finally:
        lib.llama_log_set(ours[0], data[0])
    assert any("general.architecture" in text for _, text in seen)
    assert forwarded() == []
    n_seen = len(seen)
    Model(demo_path, vocab_only=True).close()
    assert len(seen) == n_seen
    assert any("general.architecture" in text for _, text in forwarded())


def test_ggml_has_the_same_callback():
    callbacks = []
    for get in (lib.llama_log_get, lib.ggml_log_get):
        callback, data = ffi.new("ggml_log_callback *"), ffi.new("void **")
        get(callback, data)
        callbacks.append((callback[0], data[0]))
    assert callbacks[0] == callbacks[1]
