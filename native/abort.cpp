// The flag that aborts a computation.
#include "llamacffi/abort.h"

#include <atomic>

static_assert(sizeof(std::atomic<int32_t>) == sizeof(int32_t), "Python allocates the flag as an int32");

namespace {

std::atomic<int32_t> &atomic_of(llamacffi_abort_flag *flag) {
    return *reinterpret_cast<std::atomic<int32_t> *>(&flag->requested);
}

} // namespace

void llamacffi_abort_set(llamacffi_abort_flag *flag, bool requested) {
    atomic_of(flag).store(requested, std::memory_order_relaxed);
}

bool llamacffi_abort_requested(void *flag) {
    return atomic_of(static_cast<llamacffi_abort_flag *>(flag)).load(std::memory_order_relaxed) != 0;
}
