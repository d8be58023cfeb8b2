// Threads whose stack is as large as what they run needs: llama.cpp recurses over its input in places.
#pragma once

#include <cstddef>
#include <functional>
#include <pthread.h>

namespace llamacffi {

// How many bytes of stack the calling thread has left; 0 if that cannot be told.
size_t stack_left();

// A thread of so much stack.  It runs `body`, which must not throw, under a guard, and logs in the
// name of the thread that made it.
class Thread {
  public:
    // Throws if the system has no such thread to give.
    Thread(size_t stack, std::function<void()> body);
    ~Thread(); // waits for the end of `body`
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

// Runs `body` where so many bytes of stack are left: here, or in a thread of its own.  What it throws
// is thrown.
void with_stack(size_t bytes, const std::function<void()> &body);

} // namespace llamacffi
