// How many threads the system allows.
// upstream: ggml/src/ggml-cpu/ggml-cpu.c ggml_thread_create: a thread that cannot start fails an assertion.
#include "llamacffi/threads.h"

#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <thread>
#include <vector>

int32_t llamacffi_threads_fit(int32_t n) {
    std::atomic<bool> over{false};
    std::vector<std::thread> threads;
    try {
        threads.reserve(n);
        for (int32_t i = 0; i < n; ++i) {
            threads.emplace_back([&over] {
                const std::unique_ptr<char[]> own(new (std::nothrow) char[1 << 16]);
                while (!over) {
                    std::this_thread::yield();
                }
            });
        }
    } catch (const std::exception &) { // the limit is reached
    }
    over = true;
    for (std::thread &thread : threads) {
        thread.join();
    }
    return static_cast<int32_t>(threads.size());
}
