/* Sampling with a chain whose grammars are always obeyed, and two small samplers. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Why a token was not chosen or accepted; 0 and above means success. */
#define LLAMACFFI_SAMPLE_NONE (-1)      /* no sampler has selected a token, or no candidate is left */
#define LLAMACFFI_SAMPLE_RULED_OUT (-2) /* every candidate left is ruled out: its logit is -inf */
#define LLAMACFFI_SAMPLE_NAN (-3)       /* a logit is NaN or +inf */
#define LLAMACFFI_SAMPLE_LOGITS (-4)    /* the context has no logits for that output */
#define LLAMACFFI_SAMPLE_ID (-5)        /* a candidate is not in the vocabulary */
#define LLAMACFFI_SAMPLE_FAILED (-6)    /* a sampler written in Python has raised an exception */
#define LLAMACFFI_SAMPLE_GRAMMAR (-7)   /* a grammar does not allow the token */
#define LLAMACFFI_SAMPLE_TRIGGER (-8)   /* a grammar does not allow the text that triggers it */
#define LLAMACFFI_SAMPLE_STEPS (-9)     /* a grammar is so ambiguous that it takes too many steps */
#define LLAMACFFI_SAMPLE_GRAPH (-10)    /* the graph has sampled with another chain, or not at all */

/* A chain, and what sampling with it needs.  Owned by the caller. */
struct llamacffi_chain {
    struct llama_sampler *sampler; /* the chain */
    bool grammar_first;            /* false: sample without the grammars, and check the result with them */
    bool in_graph;                 /* a context samples with it in its graph */
    bool failed;                   /* set by a callback that has raised an exception */
    struct llama_token_data *data; /* a buffer for the candidates of a context, */
    int32_t n_data;                /* as many as its vocabulary has tokens */
    int32_t n_vocab;               /* the size of the vocabulary; INT32_MAX accepts any token */
    bool timed;                    /* measure the time that the chain does not measure itself, */
    int64_t t_sample_us;           /* in microseconds, */
    int32_t n_sample;              /* and the samples that it does not count */
};

/* Copy the candidates of output `i` of the last batch into `data`, which has room for the whole
 * vocabulary.  Returns their number, or why there are none (LLAMACFFI_SAMPLE_*). */
int32_t llamacffi_candidates(struct llama_context *context, int32_t i, struct llama_token_data *data);

/* Returns 0 if each candidate is a token of a vocabulary of this size and its logit is finite or -inf,
 * otherwise LLAMACFFI_SAMPLE_ID or LLAMACFFI_SAMPLE_NAN. */
int32_t llamacffi_candidates_check(const struct llama_token_data_array *candidates, int32_t n_vocab);

/* As llama_sampler_sample(), but never accepts a token that a grammar does not allow or that is ruled
 * out.  Returns the token, or LLAMACFFI_SAMPLE_*. */
int32_t llamacffi_chain_sample(struct llamacffi_chain *chain, struct llama_context *context, int32_t i);

/* Apply the chain to candidates.  Returns 0, or LLAMACFFI_SAMPLE_* if they, or the selected one, are not
 * valid. */
int32_t llamacffi_chain_apply(struct llamacffi_chain *chain, struct llama_token_data_array *candidates);

/* Accept a token unless a grammar does not allow it.  Returns 0, or LLAMACFFI_SAMPLE_* with the chain
 * unchanged. */
int32_t llamacffi_chain_accept(struct llamacffi_chain *chain, int32_t token);

/* Let the samplers accept the prompt.  Grammars and llamacffi_sampler_init_min_tokens() skip it: they
 * are about what is generated. */
void llamacffi_chain_accept_prompt(struct llamacffi_chain *chain, const int32_t *tokens, int32_t n_tokens);

/* A sampler that masks the tokens that end a generation until `n` tokens have been accepted. */
struct llama_sampler *llamacffi_sampler_init_min_tokens(const int32_t *ends, int32_t n_ends, int32_t n);

/* A sampler that marks the candidates as unsorted, for use after one that changes logits and leaves the
 * mark as it is. */
struct llama_sampler *llamacffi_sampler_init_unsorted(void);

#ifdef __cplusplus
}
#endif
