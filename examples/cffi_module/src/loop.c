#include "llamacffi-all.h"
#include "llamacffi-build.h"

static llama_token best(const float *logits, int32_t n_vocab)
{
    llama_token found = 0;
    for (llama_token i = 1; i < n_vocab; ++i) {
        if (logits[i] > logits[found]) {
            found = i;
        }
    }
    return found;
}

/* Decode `first`, then repeatedly the most likely token, until `out` has `size` tokens or the model ends
 * the text.  Returns the number of tokens in `out`, or -1 if llama.cpp fails to decode. */
static int32_t greedy_loop(struct llama_context *context, llama_token first, llama_token *out,
                           int32_t size)
{
    const struct llama_vocab *vocab = llama_model_get_vocab(llama_get_model(context));
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    llama_token token = first;

    for (int32_t n = 0; n < size; ++n) {
        if (llama_decode(context, llama_batch_get_one(&token, 1)) != 0) {
            return -1;
        }
        token = best(llama_get_logits_ith(context, -1), n_vocab);
        if (llama_vocab_is_eog(vocab, token)) {
            return n;
        }
        out[n] = token;
    }
    return size;
}
