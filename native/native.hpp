// What the parts of native/ know of each other.
#pragma once

namespace llamacffi {

void install_abort_callback(); // guard.cpp
void install_log_callbacks();  // log.cpp

} // namespace llamacffi
