// The log, a ring buffer: llama.cpp writes lines from any thread, and Python reads them later.
#include "compat.hpp"
#include "llamacffi/log.h"
#include "native.hpp"

#include "ggml.h"
#include "llama.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <mutex>
#include <string>

#include <pthread.h>

namespace {

struct Line {
    llamacffi_log_info info = {};
    std::string text;
};

struct PerThread {
    int32_t number;       // 0: none yet
    ggml_log_level level; // of its last message, which a message of level CONT continues
    uint64_t checkpoint;  // the number of lines at its last checkpoint
};

thread_local PerThread here = {};

double now() {
    const auto since_1970 = std::chrono::system_clock::now().time_since_epoch();
    return std::chrono::duration<double>(since_1970).count();
}

// Messages without a level count as information.
int32_t rank(ggml_log_level level) {
    return level > GGML_LOG_LEVEL_NONE && level < GGML_LOG_LEVEL_CONT ? level : GGML_LOG_LEVEL_INFO;
}

class Ring {
  public:
    // Text comes in pieces: a newline ends a line, and a message of level CONT continues the previous line
    // unless another thread has started one in between.
    void write(ggml_log_level level, const char *text) {
        if (level != GGML_LOG_LEVEL_CONT) {
            here.level = level;
        }
        if (rank(here.level) < minimum.load(std::memory_order_relaxed)) {
            return;
        }
        const llamacffi_log_info info = {here.level, llamacffi::log_thread(), now()};
        std::lock_guard<std::mutex> lock(mutex);
        if (level != GGML_LOG_LEVEL_CONT || open.info.thread != info.thread) {
            end_line();
        }
        if (open.text.empty()) {
            open.info = info;
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

    // Without the lock, which another thread may have held when a child process was forked.
    uint64_t count() const { return written.load(std::memory_order_acquire); }

    int32_t read(uint64_t number, llamacffi_log_info *info, char *text, size_t size) {
        std::lock_guard<std::mutex> lock(mutex);
        if (number >= written || number + lines.size() < written) {
            return -1;
        }
        const Line &line = lines[number % lines.size()];
        *info = line.info;
        std::memcpy(text, line.text.data(), std::min(size, line.text.size()));
        return static_cast<int32_t>(line.text.size());
    }

    // Called around a fork, so that no other thread holds the lock in the child.
    void hold() { mutex.lock(); }
    void let_go() { mutex.unlock(); }

    std::atomic<int32_t> minimum{GGML_LOG_LEVEL_NONE};

  private:
    static constexpr size_t max_line = 1 << 16; // limits the memory that text without newlines takes

    void end_line() {
        if (!open.text.empty()) {
            Line &line = lines[written % lines.size()];
            line.info = open.info; // not moved: the next line of the same message needs it, too
            std::swap(line.text, open.text);
            open.text.clear();
            ++written;
        }
    }

    std::mutex mutex;
    std::array<Line, LLAMACFFI_LOG_CAPACITY> lines;
    Line open;
    std::atomic<uint64_t> written{0};
};

// Never destroyed, because ggml's static destructors may log after ours have run.
Ring &ring() {
    static Ring *one = new Ring;
    return *one;
}

void on_log(ggml_log_level level, const char *text, void *) {
    ring().write(level, text);
    llamacffi::watch_log(level, text);
}

} // namespace

namespace llamacffi {

void install_log_callbacks() {
    llama_log_set(on_log, nullptr); // upstream: src/llama-impl.cpp ggml_log_set: called by it, too
    mtmd_helper_log_set(on_log, nullptr);
    const auto let_go = [] { ring().let_go(); };
    pthread_atfork([] { ring().hold(); }, let_go, let_go);
}

int log_thread() {
    static std::atomic<int32_t> last{0};
    if (here.number == 0) {
        here.number = ++last;
    }
    return here.number;
}

void log_as(int thread) { here.number = thread; }

} // namespace llamacffi

uint64_t llamacffi_log_count(void) { return ring().count(); }

uint64_t llamacffi_log_checkpoint(void) { return here.checkpoint = ring().count(); }

uint64_t llamacffi_log_since(void) { return here.checkpoint; }

int32_t llamacffi_log_thread(void) { return llamacffi::log_thread(); }

int32_t llamacffi_log_line(uint64_t number, llamacffi_log_info *info, char *text, size_t size) {
    return ring().read(number, info, text, size);
}

void llamacffi_log_set_level(int32_t level) { ring().minimum = level; }

int32_t llamacffi_log_get_level(void) { return ring().minimum; }
