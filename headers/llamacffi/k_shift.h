/* Whether cached keys can be shifted to other positions, which rotates them (RoPE). */
#pragma once

#include "llamacffi/graph.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef LLAMACFFI_WITHOUT_K_SHIFT
/* What happens to keys that are shifted. */
#define LLAMACFFI_K_SHIFT_WORKS 0            /* they are rotated correctly */
#define LLAMACFFI_K_SHIFT_SCALES 1 /* each shift also scales them */
#define LLAMACFFI_K_SHIFT_FAILS 2        /* a device cannot rotate them, or gets it wrong: see `reason` */
#define LLAMACFFI_K_SHIFT_OTHER_KEYS 3     /* keys that the model rotates otherwise are rotated too (turns_all) */
#define LLAMACFFI_K_SHIFT_NO_LAYER 4    /* llama.cpp fails: a cache has no keys to rotate (turns_each) */

/* Rotate keys like those of a context on the devices that hold them, in separate memory and on one
 * thread, and check the result.  `type` is the enum ggml_type of the keys, `offload` whether they are
 * on the devices of their layers, and `graph` describes the graph of the context. */
int32_t llamacffi_try_k_shift(const struct llama_context *context, int32_t type, bool offload,
                              const struct llamacffi_graph *graph, char *reason, size_t size);

/* The greatest common divisor of the head sizes of all layers: for keys, or for values. */
int32_t llamacffi_model_head_unit(const struct llama_model *model, bool values);
#endif /* LLAMACFFI_WITHOUT_K_SHIFT */

#ifdef __cplusplus
}
#endif
