/* Functions that must not run at the same time: a new context reserves the memory for its graphs, and reads
 * the model's list of adapters without a lock, while another thread may load or free an adapter. */
#pragma once

#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* As the functions of llama.h with similar names, but one at a time, and not while llamacffi_reserve()
 * or llamacffi_graph_describe() reserves the memory of a context. */
struct llama_context *llamacffi_context_new(struct llama_model *model,
                                            const struct llama_context_params *params);
struct llama_adapter_lora *llamacffi_adapter_load(struct llama_model *model, FILE *file);
void llamacffi_adapter_free(struct llama_adapter_lora *adapter);

/* Keep all threads from doing so during a fork, and allow it again in the parent (`unlock`) and in the
 * child (`new_lock`).  All three are for the thread that forks. */
void llamacffi_reserve_lock(void);
void llamacffi_reserve_unlock(void);
void llamacffi_reserve_new_lock(void);

#ifdef __cplusplus
}
#endif
