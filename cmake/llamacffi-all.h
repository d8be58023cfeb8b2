/* Every header that llamacffi binds: llama.cpp's, and its own. */
#include "llamacffi-upstream.h"
#include "llamacffi.h"
