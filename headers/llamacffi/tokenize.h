/* Tokens from text and text from tokens, for one text or many. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* How much stack llama_tokenize() needs for each byte of a text, with a margin; 0 if it does not recurse.
 * It may recurse for each character of a word, so that a long one overflows the stack.  This is measured,
 * which takes milliseconds. */
size_t llamacffi_stack_per_byte(const struct llama_vocab *vocab);

/* Pass texts of up to this many bytes to llamacffi_tokenize(). */
#define LLAMACFFI_SHORT_TEXT 8192

/* Facts about a vocabulary that tokenizing needs.  Freeing it does not access the vocabulary. */
struct llamacffi_tokenizer;

/* `templates` are the concatenated chat templates of the model. */
struct llamacffi_tokenizer *llamacffi_tokenizer_new(const struct llama_vocab *vocab, const char *templates,
                                                    int64_t size);
void llamacffi_tokenizer_free(struct llamacffi_tokenizer *tokenizer);

/* As llama_tokenize(), on a large enough stack; without `parse_special`, text never becomes a control
 * token.  Fails if the vocabulary cannot represent a part of the text. */
int32_t llamacffi_tokenize(const struct llamacffi_tokenizer *tokenizer, const char *text, int64_t length,
                           int32_t *tokens, int32_t size, bool add_special, bool parse_special,
                           size_t stack_per_byte);

/* Tokenize a long text in steps of some milliseconds, as far as it has places to split at: call
 * llamacffi_tokens_more() until it returns false.  The text must not move. */
struct llamacffi_tokens;
struct llamacffi_tokens *llamacffi_tokens_begin(const struct llamacffi_tokenizer *tokenizer, const char *text,
                                                int64_t length, bool add_special, bool parse_special,
                                                size_t stack_per_byte);
bool llamacffi_tokens_more(struct llamacffi_tokens *tokens);
int64_t llamacffi_tokens_size(const struct llamacffi_tokens *tokens);
void llamacffi_tokens_copy(const struct llamacffi_tokens *tokens, int32_t *target);
void llamacffi_tokens_free(struct llamacffi_tokens *tokens);

/* How to turn tokens into text. */
struct llamacffi_text_style {
    bool remove_special;  /* drop the tokens that llama_tokenize() adds at the ends */
    bool unparse_special; /* write special tokens as their text instead of dropping them */
    bool exact;           /* concatenate the pieces, without the cleanup of llama_detokenize() */
    bool strip_blank;     /* if exact: drop one space at the beginning and after special tokens */
};

/* As llama_detokenize(), but also returns INT32_MIN if the length of the text exceeds an int32. */
int32_t llamacffi_detokenize(const struct llama_vocab *vocab, const int32_t *tokens, int64_t n_tokens,
                             char *text, int32_t size, const struct llamacffi_text_style *style);

/* The index of the first token that is not in the vocabulary, or -1. */
int64_t llamacffi_token_outside(const struct llama_vocab *vocab, const int32_t *tokens, int64_t n_tokens);

/* Copy the tokens that produce no text when a model generates them: control tokens, unknown tokens, and
 * tokens that end a generation.  `tokens` has room for the whole vocabulary.  Returns their number. */
int32_t llamacffi_textless_tokens(const struct llama_vocab *vocab, int32_t *tokens);

/* Sequences of tokens, or of bytes. */
struct llamacffi_sequences;

/* Tokenize many texts with up to `n_threads` threads; text i is at starts[i] to starts[i + 1].  Returns
 * tokens, owned by the caller. */
struct llamacffi_sequences *llamacffi_tokenize_all(const struct llamacffi_tokenizer *tokenizer, const char *text,
                                                   const int64_t *starts, int64_t n_texts,
                                                   bool add_special, bool parse_special,
                                                   size_t stack_per_byte, int32_t n_threads);

/* The inverse.  Returns bytes, owned by the caller. */
struct llamacffi_sequences *llamacffi_detokenize_all(const struct llama_vocab *vocab,
                                                     const int32_t *tokens, const int64_t *starts,
                                                     int64_t n_sequences,
                                                     const struct llamacffi_text_style *style,
                                                     int32_t n_threads);

/* The index of the first sequence that failed, or -1, and the reason.  After a failure, the others may
 * be missing. */
int64_t llamacffi_sequences_failed(const struct llamacffi_sequences *sequences);
const char *llamacffi_sequences_error(const struct llamacffi_sequences *sequences);

/* The total number of tokens or bytes. */
int64_t llamacffi_sequences_size(const struct llamacffi_sequences *sequences);

/* Copy the concatenated elements, and the index at which each sequence begins and the last one ends. */
void llamacffi_sequences_copy(const struct llamacffi_sequences *sequences, void *elements, int64_t *starts);

void llamacffi_sequences_free(struct llamacffi_sequences *sequences);

#ifdef __cplusplus
}
#endif
