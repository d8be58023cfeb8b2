/* Every public header of llama.cpp, ggml and mtmd that llamacffi binds, in the order in which they are
 * read.  Older trees lack some. */
#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#if __has_include("ggml-cpu.h")
#include "ggml-cpu.h"
#endif
#if __has_include("ggml-opt.h")
#include "ggml-opt.h"
#endif
#if __has_include("ggml-rpc.h")
#include "ggml-rpc.h"
#endif
#if __has_include("gguf.h")
#include "gguf.h"
#endif
#include "llama.h"
#if __has_include("mtmd.h")
#include "mtmd.h"
#endif
#if __has_include("mtmd-helper.h")
#include "mtmd-helper.h"
#endif
