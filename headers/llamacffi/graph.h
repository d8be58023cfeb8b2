/* The graph of a context, which llama.h does not expose. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What the graph of a context computes. */
struct llamacffi_graph {
    bool has_logits;     /* it computes logits; llama_get_logits() returns a pointer even if it does not */
    int64_t n_pooled;    /* the size of the pooled embedding of a sequence; 0 without pooling */
    int64_t n_positions; /* the number of learned position embeddings; 0 if the model has none */
    bool mixes_some;     /* some keys are multiplied by a Hadamard matrix before they are cached, */
    bool mixes_all;      /* or all are */
    bool turns_all;      /* all keys are rotated (RoPE) exactly as llama.cpp rotates them when shifting */
    bool turns_each;     /* each cache has a layer with RoPE: shifting fails for a cache without one */
    char problem[256];   /* an operation that would crash or hang the CPU backend; empty if none */
};

#ifndef LLAMACFFI_WITHOUT_GRAPH
/* Build the graph for a batch with this many tokens, sequences and outputs, as when the context was
 * created, and describe it.  Computes nothing. */
void llamacffi_graph_describe(struct llama_context *context, uint32_t n_tokens, uint32_t n_seqs,
                              uint32_t n_outputs, struct llamacffi_graph *graph);
#endif /* LLAMACFFI_WITHOUT_GRAPH */

#ifdef __cplusplus
}
#endif
