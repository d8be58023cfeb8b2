/* The loop that the facade is measured against: decode, sample, detokenize, in pure C. */
#include "llama.h"

#include <time.h>

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* Generate `n` tokens after the last output of `ctx`.  Writes them to `tokens`, adds the bytes of their
 * text to `*n_bytes`, and returns the seconds taken, or a negative number if a call failed. */
double bench_loop(struct llama_context *ctx, struct llama_sampler *sampler, int32_t n,
                  llama_token *tokens, int64_t *n_bytes) {
    const struct llama_vocab *vocab = llama_model_get_vocab(llama_get_model(ctx));
    char piece[256];
    const double began = now();
    for (int32_t i = 0; i < n; i++) {
        tokens[i] = llama_sampler_sample(sampler, ctx, -1);
        const int32_t length = llama_token_to_piece(vocab, tokens[i], piece, sizeof piece, 0, false);
        if (length < 0 || llama_decode(ctx, llama_batch_get_one(&tokens[i], 1)) != 0) {
            return -1;
        }
        *n_bytes += length;
    }
    return now() - began;
}
