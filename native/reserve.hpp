// The lock that is held while a context reserves memory, and while an adapter is loaded or freed.
#pragma once

#include <mutex>

namespace llamacffi {

std::recursive_mutex &reserve_mutex();

// Holds the lock while it exists.
struct ReserveLock {
    ReserveLock() : held(reserve_mutex()) {}
    std::lock_guard<std::recursive_mutex> held;
};

} // namespace llamacffi
