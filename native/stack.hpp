// Threads with a stack large enough for what they run.
// upstream: src/unicode.cpp "std::regex": recurses for each character of a text, as other code does over its input.
#pragma once

#include <cstddef>
#include <functional>
#include <pthread.h>

namespace llamacffi {

// How many bytes of stack the calling thread has left; 0 if unknown.
size_t stack_left();

// A thread with this much stack.  It runs `body`, which must not throw, under a guard, and logs under the
// number of the thread that created it.
class Thread {
  public:
    // Throws if the system cannot create the thread.
    Thread(size_t stack, std::function<void()> body);
    ~Thread(); // waits until `body` returns
    void join();
    size_t used() const; // the stack that `body` has used, after join()
    Thread(const Thread &) = delete;
    Thread &operator=(const Thread &) = delete;

  private:
    static void *run(void *self);

    std::function<void()> body;
    int log_thread;
    void *memory = nullptr; // the stack and the guard page below it
    size_t size = 0, page = 0;
    pthread_t thread;
    bool joined = false;
};

// Runs `body` where this many bytes of stack are left: here, or in a new thread.  Rethrows what it throws.
void with_stack(size_t bytes, const std::function<void()> &body);

} // namespace llamacffi
