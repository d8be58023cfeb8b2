// Work that llama.cpp puts off until the next decode.
#include "guard.hpp"
#include "llama-context.h" // the functions are exported, but only as members
#include "llamacffi.h"

void llamacffi_reserve(llama_context *context) {
    llamacffi::guarded("llamacffi_reserve", [&] { context->sched_reserve(); });
}

void llamacffi_memory_update(llama_context *context) {
    llamacffi::guarded("llamacffi_memory_update", [&] {
        context->sched_reserve(); // as decode does: the update plans a graph within what is reserved
        context->memory_update(false);
    });
}
