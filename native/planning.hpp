// The lock that is held while a context plans, and while an adapter is loaded or freed.
#pragma once

#include <mutex>

namespace llamacffi {

std::recursive_mutex &planning();

// Holds the lock while it exists.
struct Planning {
    Planning() : held(planning()) {}
    std::lock_guard<std::recursive_mutex> held;
};

} // namespace llamacffi
