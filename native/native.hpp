// Functions that the parts of native/ share.
#pragma once

struct ggml_cgraph;
struct llama_context;
struct llamacffi_graph;

namespace llamacffi {

void install_abort_callback(); // guard.cpp
void install_log_callbacks();  // log.cpp

// The number of the calling thread in the log.  A thread that works for another one adopts its number.
int log_thread(); // log.cpp
void log_as(int thread);

// Passes a message to the watcher of the calling thread, if any, which may throw.
void watch_log(int level, const char *text); // internals/quantize.cpp

// Describes what a graph does with keys before it caches them.
void look_at_keys(const llama_context &context, ggml_cgraph *graph, llamacffi_graph &found); // internals/k_shift.cpp

} // namespace llamacffi
