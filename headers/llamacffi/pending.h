/* Work that llama.cpp defers to the next decode. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef LLAMACFFI_WITHOUT_PENDING
struct llamacffi_abort_flag;

/* Reserve the memory for the graphs of a context now, if a change of its adapters or samplers has
 * deferred that to the next decode. */
void llamacffi_reserve(struct llama_context *context);

/* Apply the updates that the memory of a context has deferred to the next decode: rotating keys that
 * were shifted to other positions, and copying sequences between buffers.  A saved state would lack
 * them.  `flag` is the abort flag of the context; it is ignored meanwhile, since a half-finished update
 * would corrupt the memory. */
void llamacffi_memory_update(struct llama_context *context, struct llamacffi_abort_flag *flag);
#endif /* LLAMACFFI_WITHOUT_PENDING */

#ifdef __cplusplus
}
#endif
