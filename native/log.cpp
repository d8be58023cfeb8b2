// The log ring: llama.cpp writes lines from any thread, Python reads them when it gets to it.
#include "llamacffi.h"
#include "native.hpp"

#include "ggml.h"
#include "llama.h"
#include "mtmd-helper.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>

namespace {

struct Line {
    int32_t level;
    std::string text;
};

class Ring {
  public:
    // Text comes in pieces: a line ends at its newline, and a message of level CONT goes on with the
    // line before it.
    void write(ggml_log_level level, const char *text) {
        std::lock_guard<std::mutex> lock(mutex);
        if (level != GGML_LOG_LEVEL_CONT) {
            end_line();
            open.level = level;
        }
        for (const char *start = text; *start;) {
            const char *newline = std::strchr(start, '\n');
            open.text.append(start, newline ? newline : start + std::strlen(start));
            if (newline || open.text.size() > max_line) {
                end_line();
            }
            start = newline ? newline + 1 : "";
        }
    }

    // Without the lock: a forked child asks too, and the lock may have been another thread's.
    uint64_t count() const { return written.load(std::memory_order_acquire); }

    int32_t read(uint64_t number, int32_t *level, char *text, size_t size) {
        std::lock_guard<std::mutex> lock(mutex);
        if (number >= written || number + lines.size() < written) {
            return -1;
        }
        const Line &line = lines[number % lines.size()];
        *level = line.level;
        std::memcpy(text, line.text.data(), std::min(size, line.text.size()));
        return static_cast<int32_t>(line.text.size());
    }

  private:
    static constexpr size_t max_line = 1 << 16; // bounds the memory of a writer without newlines

    void end_line() {
        if (!open.text.empty()) {
            Line &line = lines[written % lines.size()];
            line.level = open.level; // which the next line of the same message has too
            std::swap(line.text, open.text);
            open.text.clear();
            ++written;
        }
    }

    std::mutex mutex;
    std::array<Line, LLAMACFFI_LOG_CAPACITY> lines;
    Line open = {GGML_LOG_LEVEL_NONE, {}};
    std::atomic<uint64_t> written{0};
};

// Never destroyed: ggml's static destructors may log after ours have run.
Ring &ring() {
    static Ring *one = new Ring;
    return *one;
}

void on_log(ggml_log_level level, const char *text, void *) { ring().write(level, text); }

} // namespace

namespace llamacffi {

void install_log_callbacks() {
    llama_log_set(on_log, nullptr); // sets ggml's too
    mtmd_helper_log_set(on_log, nullptr);
}

} // namespace llamacffi

uint64_t llamacffi_log_count(void) { return ring().count(); }

int32_t llamacffi_log_line(uint64_t number, int32_t *level, char *text, size_t size) {
    return ring().read(number, level, text, size);
}
