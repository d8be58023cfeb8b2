// Threads with a stack large enough for what they run.
#include "stack.hpp"

#include "guard.hpp"
#include "native.hpp"

#include <csignal>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_STACK
#define MAP_STACK 0 // macOS has none
#endif
#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace {

// For the stack used outside of the recursion, and by pthread itself.
constexpr size_t margin = 128 * 1024;

struct Bounds {
    const char *low = nullptr, *high = nullptr;
};

Bounds bounds_of_this_thread() {
    Bounds bounds;
#if defined(__APPLE__)
    bounds.high = static_cast<const char *>(pthread_get_stackaddr_np(pthread_self()));
    bounds.low = bounds.high - pthread_get_stacksize_np(pthread_self());
#else
    pthread_attr_t attributes;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        void *address = nullptr;
        size_t size = 0;
        if (pthread_attr_getstack(&attributes, &address, &size) == 0) {
            bounds.low = static_cast<const char *>(address);
            bounds.high = bounds.low + size;
        }
        pthread_attr_destroy(&attributes);
    }
#endif
    return bounds;
}

// The total size.
size_t size_of_this_stack() {
    const Bounds bounds = bounds_of_this_thread();
    const char *here = static_cast<const char *>(__builtin_frame_address(0));
    if (here <= bounds.low || here > bounds.high) {
        return SIZE_MAX; // unknown, or another stack than the thread's own
    }
    return static_cast<size_t>(bounds.high - bounds.low);
}

// Signals are for Python's threads, so these block them, except for those that a fault raises.
sigset_t asynchronous_signals() {
    sigset_t signals;
    sigfillset(&signals);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) {
        sigdelset(&signals, fault);
    }
    return signals;
}

} // namespace

namespace llamacffi {

size_t stack_left() {
    static thread_local const Bounds bounds = bounds_of_this_thread();
    const char *here = static_cast<const char *>(__builtin_frame_address(0));
    if (here <= bounds.low || here > bounds.high) {
        return 0; // unknown, or another stack than the thread's own
    }
    const size_t left = static_cast<size_t>(here - bounds.low);
    return left > margin ? left - margin : 0;
}

bool has_stack(const char *function) noexcept {
    // A batch needs 64 to 96 KiB with the models of the tests, and larger models need more.
    constexpr size_t needed = 256 * 1024;
    static thread_local const size_t size = size_of_this_stack();
    if (size >= needed) {
        return true;
    }
    const std::string message = "the stack of this thread has " + std::to_string(size / 1024) +
                                " KiB, but llama.cpp needs " + std::to_string(needed / 1024) +
                                ": call threading.stack_size(" + std::to_string(needed) +
                                ") before starting the thread";
    set_failure(function, message.c_str());
    return false;
}

Thread::Thread(size_t stack, std::function<void()> run_this)
    : body(std::move(run_this)), log_thread(llamacffi::log_thread()) {
    page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size = (stack + margin + page - 1) / page * page + page;
    // This only reserves address space; memory is used as the stack grows.
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) {
        throw std::runtime_error("no address space for a stack of " + std::to_string(size >> 20) +
                                 " MiB, which a text of this length may need: split the text");
    }
    const sigset_t signals = asynchronous_signals();
    sigset_t before;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    mprotect(memory, page, PROT_NONE); // guard page: an overflow must not reach the memory below
    pthread_attr_setstack(&attributes, static_cast<char *>(memory) + page, size - page);
    pthread_sigmask(SIG_BLOCK, &signals, &before);
    const int failed = pthread_create(&thread, &attributes, run, this);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    if (failed) {
        munmap(memory, size);
        throw std::runtime_error("the system cannot start another thread");
    }
}

Thread::~Thread() {
    join();
    munmap(memory, size);
}

void Thread::join() {
    if (!joined) {
        pthread_join(thread, nullptr);
        joined = true;
    }
}

size_t Thread::used() const {
    const auto *low = reinterpret_cast<const uint64_t *>(static_cast<const char *>(memory) + page);
    const auto *high = low + (size - page) / sizeof *low;
    while (low < high && *low == 0) { // never written to
        ++low;
    }
    return static_cast<size_t>(high - low) * sizeof *low;
}

void *Thread::run(void *self) {
    Thread &thread = *static_cast<Thread *>(self);
    log_as(thread.log_thread);
    Enter enter;
    thread.body();
    return nullptr;
}

void with_stack(size_t bytes, const std::function<void()> &body) {
    if (stack_left() >= bytes) {
        return body();
    }
    std::exception_ptr thrown;
    {
        Thread thread(bytes, [&] {
            try {
                body();
            } catch (...) {
                thrown = std::current_exception();
            }
        });
    }
    if (thrown) {
        std::rethrow_exception(thrown);
    }
}

} // namespace llamacffi
