// What the parts of native/ know of each other.
#pragma once

struct ggml_cgraph;
struct llama_context;
struct llamacffi_graph;

namespace llamacffi {

void install_abort_callback(); // guard.cpp
void install_log_callbacks();  // log.cpp

// The number of the calling thread in the log; a thread that works for another takes on its number.
int log_thread(); // log.cpp
void log_as(int thread);

// Tells who watches the calling thread of what it logs; may throw then.
void watch_log(int level, const char *text); // quantize.cpp

// Tells what a graph does with keys before it puts them into the cache.
void look_at_keys(const llama_context &context, ggml_cgraph *graph, llamacffi_graph &found); // turning.cpp

} // namespace llamacffi
