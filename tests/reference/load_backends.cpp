// Linked into upstream's programs that rely on backends being part of libggml: here they are plug-ins.
#include "ggml-backend.h"

static const bool loaded = (ggml_backend_load_all(), true);
