// Sampling with a chain whose grammars are always obeyed, and two small samplers.
#include "compat.hpp"
#include "grammar.hpp"
#include "llama.h"
#include "llamacffi/sampling.h"

#include <cmath>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

namespace {

using Candidates = llama_token_data_array;

// --- Candidates ----------------------------------------------------------------------------------

bool is_score(float logit) { return logit < INFINITY; } // -inf is allowed, NaN is not

int32_t check(const Candidates &candidates, int32_t n_vocab) {
    int32_t no_scores = 0, no_tokens = 0;
    for (size_t k = 0; k < candidates.size; ++k) {
        const llama_token_data &one = candidates.data[k];
        no_scores |= is_score(one.logit) ? 0 : 1;
        no_tokens |= static_cast<uint32_t>(one.id) < static_cast<uint32_t>(n_vocab) ? 0 : 1;
    }
    return no_tokens ? LLAMACFFI_SAMPLE_ID : no_scores ? LLAMACFFI_SAMPLE_NAN : 0;
}

// The candidates left by the samplers in the graph.
int32_t fill_from_graph(llama_context *context, int32_t i, const float *logits, llama_token_data *data) {
    const uint32_t n = llama_get_sampled_logits_count_ith(context, i);
    const llama_token *ids = llama_get_sampled_candidates_ith(context, i);
    const float *probs = llama_get_sampled_probs_ith(context, i);
    for (uint32_t k = 0; k < n; ++k) {
        data[k] = {ids[k], logits[k], probs ? probs[k] : 0.0f};
    }
    return static_cast<int32_t>(n);
}

int32_t fill(llama_context *context, int32_t i, llama_token_data *data) {
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
    if (const float *sampled = llama_get_sampled_logits_ith(context, i)) {
        const int32_t n = fill_from_graph(context, i, sampled, data);
        const int32_t wrong = check({data, static_cast<size_t>(n), -1, false}, n_vocab);
        return wrong ? wrong : n;
    }
    const float *logits = llama_get_logits_ith(context, i);
    if (!logits) {
        return LLAMACFFI_SAMPLE_LOGITS;
    }
    for (int32_t id = 0; id < n_vocab; ++id) {
        data[id] = {id, logits[id], 0.0f};
    }
    int32_t no_scores = 0; // as wide as a logit and in a separate loop, to be vectorized
    for (int32_t id = 0; id < n_vocab; ++id) {
        no_scores |= is_score(logits[id]) ? 0 : 1;
    }
    return no_scores ? LLAMACFFI_SAMPLE_NAN : n_vocab;
}

// Returns the selected token, or why it is not valid.
int32_t chosen(const llamacffi_chain &chain, const Candidates &candidates, int32_t n_vocab) {
    if (chain.failed) {
        return LLAMACFFI_SAMPLE_FAILED;
    }
    if (candidates.selected < 0 || static_cast<size_t>(candidates.selected) >= candidates.size) {
        return LLAMACFFI_SAMPLE_NONE;
    }
    const llama_token_data &one = candidates.data[candidates.selected];
    if (!std::isfinite(one.logit)) {
        return one.logit > 0 ? LLAMACFFI_SAMPLE_NAN : LLAMACFFI_SAMPLE_RULED_OUT;
    }
    return 0 <= one.id && one.id < n_vocab ? one.id : LLAMACFFI_SAMPLE_ID;
}

// --- Grammars ------------------------------------------------------------------------------------

// Calls `use` for each grammar in a chain until one returns another value than 0.
template <typename Use> int32_t each_grammar(const llamacffi_chain &chain, Use use) {
    const int32_t n = llama_sampler_chain_n(chain.sampler);
    for (int32_t k = 0; k < n; ++k) {
        llama_sampler *sampler = llama_sampler_chain_get(chain.sampler, k);
        if (llamacffi::is_grammar(sampler)) {
            if (const int32_t wrong = use(sampler)) {
                return wrong;
            }
        }
    }
    return 0;
}

int32_t accept(llamacffi_chain &chain, llama_token token) {
    const int32_t wrong =
        each_grammar(chain, [&](llama_sampler *one) { return llamacffi::grammar_prepare(one, token); });
    if (wrong) {
        return wrong;
    }
    llama_sampler_accept(chain.sampler, token);
    return chain.failed ? LLAMACFFI_SAMPLE_FAILED : 0;
}

// Returns the result of `body`, or that a grammar takes too many steps.
template <typename Body> int32_t limited(Body body) {
    try {
        return body();
    } catch (const llamacffi::TooAmbiguous &) {
        return LLAMACFFI_SAMPLE_STEPS;
    }
}

// --- Choosing ------------------------------------------------------------------------------------

// Samples without the grammars, and returns the token if they happen to allow it.
int32_t try_without_grammars(llamacffi_chain &chain, Candidates &candidates) {
    const int64_t start = chain.timed ? llama_time_us() : 0;
    const int32_t n = llama_sampler_chain_n(chain.sampler);
    for (int32_t k = 0; k < n; ++k) {
        llama_sampler *sampler = llama_sampler_chain_get(chain.sampler, k);
        if (!llamacffi::is_grammar(sampler)) {
            llama_sampler_apply(sampler, &candidates);
        }
    }
    int32_t token = chosen(chain, candidates, chain.n_data);
    if (token >= 0) {
        const int32_t wrong = each_grammar(chain, [&](llama_sampler *one) {
            return llamacffi::grammar_allows(one, token) ? 0 : LLAMACFFI_SAMPLE_GRAMMAR;
        });
        token = wrong ? wrong : token;
    }
    chain.t_sample_us += chain.timed ? llama_time_us() - start : 0;
    return token;
}

int32_t choose(llamacffi_chain &chain, llama_context *context, int32_t i) {
    const bool grammars = !chain.grammar_first && each_grammar(chain, [](llama_sampler *) { return 1; });
    const bool attempt = grammars && !chain.in_graph;
    for (int32_t round = attempt ? 0 : 1; round < 2; ++round) {
        const int32_t n = fill(context, i, chain.data);
        if (n < 0) {
            return n;
        }
        Candidates candidates = {chain.data, static_cast<size_t>(n), -1, false};
        if (round == 0) {
            const int32_t token = try_without_grammars(chain, candidates);
            if (token >= 0 || token == LLAMACFFI_SAMPLE_FAILED) {
                return token;
            }
        } else {
            llama_sampler_apply(chain.sampler, &candidates);
            return chosen(chain, candidates, chain.n_data);
        }
    }
    return LLAMACFFI_SAMPLE_NONE;
}

int32_t sample(llamacffi_chain &chain, llama_context *context, int32_t i) {
    chain.failed = false;
    const llama_token done = llama_get_sampled_token_ith(context, i);
    if (chain.in_graph != (llama_get_sampled_logits_ith(context, i) != nullptr)) {
        return LLAMACFFI_SAMPLE_GRAPH;
    }
    if (done != LLAMA_TOKEN_NULL) {
        llama_sampler_accept(chain.sampler, done);
        return chain.failed ? LLAMACFFI_SAMPLE_FAILED : done;
    }
    const int32_t token = choose(chain, context, i);
    if (token < 0) {
        return token;
    }
    const int32_t status = accept(chain, token);
    return status < 0 ? status : token;
}

int32_t apply(llamacffi_chain &chain, Candidates &candidates) {
    chain.failed = false;
    if (const int32_t wrong = check(candidates, chain.n_vocab)) {
        return wrong;
    }
    llama_sampler_apply(chain.sampler, &candidates);
    const int32_t token = chosen(chain, candidates, chain.n_vocab);
    const bool open = token == LLAMACFFI_SAMPLE_NONE && candidates.selected < 0;
    return open || token >= 0 ? 0 : token;
}

// --- Samplers ------------------------------------------------------------------------------------

struct MinTokens {
    const int32_t n;
    const std::vector<llama_token> ends;
    int32_t accepted = 0;

    static MinTokens *of(const llama_sampler *sampler) { return static_cast<MinTokens *>(sampler->ctx); }

    void apply(Candidates &candidates) const {
        if (accepted >= n || ends.empty()) {
            return;
        }
        for (size_t k = 0; k < candidates.size; ++k) {
            for (llama_token end : ends) {
                if (candidates.data[k].id == end) {
                    candidates.data[k].logit = -INFINITY;
                }
            }
        }
        candidates.sorted = false;
    }
};

extern const llama_sampler_i min_tokens;

llama_sampler *new_min_tokens(const MinTokens &state) {
    return llama_sampler_init(const_cast<llama_sampler_i *>(&min_tokens), new MinTokens(state));
}

const llama_sampler_i min_tokens = {
    /* .name              = */ [](const llama_sampler *) { return "min-tokens"; },
    /* .accept            = */ [](llama_sampler *one, llama_token) { ++MinTokens::of(one)->accepted; },
    /* .apply             = */ [](llama_sampler *one, Candidates *all) { MinTokens::of(one)->apply(*all); },
    /* .reset             = */ [](llama_sampler *one) { MinTokens::of(one)->accepted = 0; },
    /* .clone             = */ [](const llama_sampler *one) { return new_min_tokens(*MinTokens::of(one)); },
    /* .free              = */ [](llama_sampler *one) { delete MinTokens::of(one); },
    // Further members, whose number depends on the version, are null.
};

const llama_sampler_i unsorted = {
    /* .name              = */ [](const llama_sampler *) { return "unsorted"; },
    /* .accept            = */ nullptr,
    /* .apply             = */ [](llama_sampler *, Candidates *all) { all->sorted = false; },
    /* .reset             = */ nullptr,
    /* .clone             = */ nullptr, // there is no state to copy
};

} // namespace

int32_t llamacffi_candidates(llama_context *context, int32_t i, llama_token_data *data) {
    return fill(context, i, data);
}

int32_t llamacffi_candidates_check(const Candidates *candidates, int32_t n_vocab) {
    return check(*candidates, n_vocab);
}

int32_t llamacffi_chain_sample(llamacffi_chain *chain, llama_context *context, int32_t i) {
    return limited([&] { return sample(*chain, context, i); });
}

int32_t llamacffi_chain_apply(llamacffi_chain *chain, Candidates *candidates) {
    return limited([&] { return apply(*chain, *candidates); });
}

int32_t llamacffi_chain_accept(llamacffi_chain *chain, int32_t token) {
    chain->failed = false;
    return limited([&] { return accept(*chain, token); });
}

void llamacffi_chain_accept_prompt(llamacffi_chain *chain, const int32_t *tokens, int32_t n_tokens) {
    chain->failed = false;
    const int32_t n = llama_sampler_chain_n(chain->sampler);
    for (int32_t k = 0; k < n; ++k) {
        llama_sampler *sampler = llama_sampler_chain_get(chain->sampler, k);
        if (llamacffi::is_grammar(sampler) || sampler->iface == &min_tokens) {
            continue;
        }
        for (int32_t t = 0; t < n_tokens && !chain->failed; ++t) {
            llama_sampler_accept(sampler, tokens[t]);
        }
    }
}

llama_sampler *llamacffi_sampler_init_min_tokens(const int32_t *ends, int32_t n_ends, int32_t n) {
    return new_min_tokens({n, std::vector<llama_token>(ends, ends + n_ends), 0});
}

llama_sampler *llamacffi_sampler_init_unsorted(void) {
    return llama_sampler_init(const_cast<llama_sampler_i *>(&unsorted), nullptr);
}
