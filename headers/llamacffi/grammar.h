/* Grammars, compiled to arrays by Python, as samplers. */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The rules of a grammar. */
struct llamacffi_grammar_rules {
    const int32_t *slots; /* three numbers for each symbol: LLAMACFFI_SLOT_* and its arguments */
    int32_t n_slots;
    const int32_t *alternatives; /* the slots at which alternatives begin, rule by rule */
    int32_t n_alternatives;
    const int32_t *first; /* the first alternative of each rule, and finally their total number */
    int32_t n_rules;
    const uint32_t *ranges; /* two numbers for each: the first character and the last */
    int32_t n_ranges;
    int32_t root; /* the rule to begin with */
};
#define LLAMACFFI_SLOT_END 0       /* of an alternative */
#define LLAMACFFI_SLOT_CHARS 1     /* a character: the index of its first range, and how many it has */
#define LLAMACFFI_SLOT_RULE 2      /* a rule: its number */
#define LLAMACFFI_SLOT_TOKEN 3     /* a token: its index in the list of tokens */
#define LLAMACFFI_SLOT_NOT_TOKEN 4 /* any other token */

/* A regular expression as a program that reads each character once. */
struct llamacffi_pattern {
    const int32_t *steps; /* three numbers for each: LLAMACFFI_PATTERN_* and its arguments */
    int32_t n_steps;
    const uint32_t *ranges; /* as above */
    int32_t n_ranges;
    int32_t n_saved; /* positions: two for the match, and two for each group */
};
#define LLAMACFFI_PATTERN_MATCH 0
#define LLAMACFFI_PATTERN_SET 1    /* a character: the index of its first range, and how many it has */
#define LLAMACFFI_PATTERN_JUMP 2   /* continue at another step */
#define LLAMACFFI_PATTERN_SPLIT 3  /* continue at either of two steps; prefer the first */
#define LLAMACFFI_PATTERN_SAVE 4   /* save the position under a number */
#define LLAMACFFI_PATTERN_BEGIN 5  /* match at the beginning of the text */
#define LLAMACFFI_PATTERN_END 6    /* match at the end of the text */
#define LLAMACFFI_PATTERN_WORD 7   /* match at a word boundary */
#define LLAMACFFI_PATTERN_INSIDE 8 /* match anywhere but at a word boundary */

/* The texts of a vocabulary's tokens, shared by grammars.  They may outlive the vocabulary. */
struct llamacffi_pieces;
struct llamacffi_pieces *llamacffi_pieces_init(const struct llama_vocab *vocab);
void llamacffi_pieces_free(struct llamacffi_pieces *pieces);

/* As llama_sampler_init_grammar(), or with patterns or triggers as
 * llama_sampler_init_grammar_lazy_patterns(), for rules that have been parsed and checked: the numbers
 * in the arrays are trusted.  The cost of a token does not depend on how many ways there are to parse
 * the text.  The arrays are copied. */
struct llama_sampler *llamacffi_sampler_init_grammar(const struct llamacffi_grammar_rules *rules,
                                                     const int32_t *tokens,
                                                     const struct llamacffi_pattern *patterns, int32_t n_patterns,
                                                     const int32_t *triggers, int32_t n_triggers,
                                                     const struct llamacffi_pieces *pieces);

#ifdef __cplusplus
}
#endif
