// What the parts of native/ know of each other.
#pragma once

namespace llamacffi {

void install_abort_callback(); // guard.cpp
void install_log_callbacks();  // log.cpp

// The number of the calling thread in the log; a thread that works for another takes on its number.
int log_thread(); // log.cpp
void log_as(int thread);

// Tells who watches the calling thread of what it logs; may throw then.
void watch_log(int level, const char *text); // quantize.cpp

} // namespace llamacffi
