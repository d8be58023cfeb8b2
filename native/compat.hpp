// Functions that native/ calls and an older llama.cpp lacks, with the results that suit it.
#pragma once

#include "has.h" // generated: LLAMACFFI_HAS_f for each function and enumerator f that the headers declare
#include "upstream.h"

#if !LLAMACFFI_HAS_mtmd_helper_log_set
inline void mtmd_helper_log_set(ggml_log_callback, void *) {} // it logs through ggml
#endif

// It does not sample in the graph.
#if !LLAMACFFI_HAS_llama_get_sampled_logits_ith
inline const float *llama_get_sampled_logits_ith(llama_context *, int32_t) { return nullptr; }
inline const float *llama_get_sampled_probs_ith(llama_context *, int32_t) { return nullptr; }
inline const llama_token *llama_get_sampled_candidates_ith(llama_context *, int32_t) { return nullptr; }
inline uint32_t llama_get_sampled_logits_count_ith(llama_context *, int32_t) { return 0; }
inline llama_token llama_get_sampled_token_ith(llama_context *, int32_t) { return LLAMA_TOKEN_NULL; }
#endif

namespace llamacffi {

// Whether a vocabulary is the one for tests, whose tokens are a hash of the text.
inline bool is_test_vocabulary(enum llama_vocab_type type) {
#if LLAMACFFI_HAS_LLAMA_VOCAB_TYPE_TEST
    return type == LLAMA_VOCAB_TYPE_TEST;
#else
    (void)type;
    return false;
#endif
}

} // namespace llamacffi
