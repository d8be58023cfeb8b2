/* Checks of a vocabulary in a file. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Check the vocabulary in the metadata of a file for faults that would make llama.cpp hang, or end the
 * process.  `kind` is its tokenizer.ggml.model, and `n_dummies` the number of tokens to create for a
 * model without a vocabulary.  Writes the fault to `text` and returns its length; 0 if there is none. */
int32_t llamacffi_vocab_fault(const struct gguf_context *gguf, const char *kind, uint64_t n_dummies, char *text,
                              size_t size);

#ifdef __cplusplus
}
#endif
