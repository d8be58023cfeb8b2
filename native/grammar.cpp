// A sampler that only allows text that can still be completed to match a grammar.
//
// upstream: src/llama-grammar.cpp llama_grammar_advance_stack: llama.cpp's own sampler tracks each way to parse the
// text separately, and where a rule is ambiguous their number may double with each character.
#include "grammar.hpp"

#include "llamacffi/grammar.h"
#include "llamacffi/sampling.h"

#include <algorithm>
#include <cmath>
#include <optional>

// The texts of a vocabulary, owned by Python.
struct llamacffi_pieces {
    std::shared_ptr<const llamacffi::Pieces> shared;
};

namespace llamacffi {

namespace {

// A few candidates are checked one by one, which costs this many times as much as checking all in order.
constexpr size_t ALONE = 8;

struct Grammar {
    explicit Grammar(std::shared_ptr<const Rules> shared)
        : rules(shared), reader(std::move(shared)), lazy(!rules->patterns.empty() || !rules->triggers.empty()) {
        reset();
    }

    std::shared_ptr<const Rules> rules;
    Reader reader;
    const bool lazy;
    bool waits = false;
    // Before the grammar is triggered: the text so far, where its tokens begin, and a search for each pattern.
    std::string text;
    std::vector<std::pair<llama_token, size_t>> tokens;
    std::vector<Search> searches;
    // The state after accepting the prepared token.
    llama_token prepared = LLAMA_TOKEN_NULL;
    std::vector<Search> searched;
    std::optional<Reader> begun;

    static Grammar &of(const llama_sampler *sampler) { return *static_cast<Grammar *>(sampler->ctx); }

    void reset() {
        reader.reset();
        waits = lazy;
        prepared = LLAMA_TOKEN_NULL;
        begun.reset();
        text.clear(), tokens.clear(), searches.clear();
        for (const Pattern &pattern : rules->patterns) {
            searches.emplace_back(pattern);
        }
    }

    // Prepares to accept a token.  Returns 0, or LLAMACFFI_SAMPLE_* with the state unchanged.
    int32_t prepare(llama_token id) {
        const Pieces &pieces = *rules->pieces;
        prepared = LLAMA_TOKEN_NULL;
        begun.reset();
        if (!pieces.has(id)) {
            return LLAMACFFI_SAMPLE_ID;
        }
        const Pieces::Piece &piece = pieces.of(id);
        int32_t wrong = 0;
        if (waits) {
            wrong = prepare_waiting(id, std::string(pieces.text(piece), piece.size));
        } else if (!reader.allows(id)) {
            wrong = LLAMACFFI_SAMPLE_GRAMMAR;
        } else if (!pieces.ends[id]) { // the end of the text leaves the position as it is
            reader.prepare(id, pieces.text(piece), piece.size, true);
        }
        prepared = wrong ? LLAMA_TOKEN_NULL : id;
        return wrong;
    }

    // Accepts the prepared token.
    void commit() {
        const llama_token id = prepared;
        prepared = LLAMA_TOKEN_NULL;
        if (begun) {
            reader = std::move(*begun);
            begun.reset();
            waits = false;
            text.clear(), tokens.clear(), searches.clear();
        } else if (waits && !searches.empty()) {
            const Pieces::Piece &piece = rules->pieces->of(id);
            tokens.emplace_back(id, text.size());
            text.append(rules->pieces->text(piece), piece.size);
            searches.swap(searched);
        } else if (!waits && !rules->pieces->ends[id]) {
            reader.commit();
        }
    }

    int32_t prepare_waiting(llama_token id, const std::string &piece) {
        const auto &triggers = rules->triggers;
        if (std::find(triggers.begin(), triggers.end(), id) != triggers.end()) {
            return begin({{id, 0}}, piece, 0);
        }
        searched = searches;
        for (Search &one : searched) {
            one.add(piece.data(), piece.size());
            const int64_t start = one.found();
            if (start >= 0) {
                auto all = tokens;
                all.emplace_back(id, text.size());
                return begin(all, text + piece, static_cast<size_t>(start));
            }
        }
        return 0;
    }

    // Triggers the grammar: a new reader reads the text from `start` on, to take over at commit().
    int32_t begin(const std::vector<std::pair<llama_token, size_t>> &all, const std::string &bytes, size_t start) {
        begun.emplace(rules);
        for (size_t k = 0; k < all.size(); ++k) {
            const size_t end = k + 1 < all.size() ? all[k + 1].second : bytes.size();
            const size_t from = std::max(all[k].second, start);
            if (end <= from) {
                continue;
            }
            if (!begun->prepare(all[k].first, bytes.data() + from, end - from, from == all[k].second)) {
                begun.reset();
                return LLAMACFFI_SAMPLE_TRIGGER;
            }
            begun->commit();
        }
        return 0;
    }

    void apply(llama_token_data_array &all) {
        if (waits) {
            return;
        }
        prepared = LLAMA_TOKEN_NULL;
        const bool few = all.size * ALONE < rules->pieces->sorted.size();
        const std::vector<char> *allowed = few ? nullptr : &reader.allowed();
        for (size_t k = 0; k < all.size; ++k) {
            const llama_token id = all.data[k].id;
            const bool may = few ? reader.allows(id) : rules->pieces->has(id) && (*allowed)[id];
            if (!may) {
                all.data[k].logit = -INFINITY;
            }
        }
    }
};

extern const llama_sampler_i grammar;

llama_sampler *new_grammar(std::unique_ptr<Grammar> state) {
    return llama_sampler_init(const_cast<llama_sampler_i *>(&grammar), state.release());
}

const llama_sampler_i grammar = {
    /* .name              = */ [](const llama_sampler *) { return "grammar"; },
    /* .accept            = */
    [](llama_sampler *one, llama_token token) {
        Grammar &state = Grammar::of(one);
        if ((token < 0 || state.prepared != token) && state.prepare(token) < 0) {
            throw std::runtime_error("the grammar does not allow the token " + std::to_string(token));
        }
        state.commit();
    },
    /* .apply             = */
    [](llama_sampler *one, llama_token_data_array *all) { Grammar::of(one).apply(*all); },
    /* .reset             = */ [](llama_sampler *one) { Grammar::of(one).reset(); },
    /* .clone             = */
    [](const llama_sampler *one) { return new_grammar(std::make_unique<Grammar>(Grammar::of(one))); },
    /* .free              = */ [](llama_sampler *one) { delete &Grammar::of(one); },
    // Further members, whose number depends on the version, are null.
};

} // namespace

bool is_grammar(const llama_sampler *sampler) { return sampler->iface == &grammar; }

bool grammar_allows(llama_sampler *sampler, llama_token token) {
    Grammar &state = Grammar::of(sampler);
    state.prepared = LLAMA_TOKEN_NULL;
    return state.waits || state.reader.allows(token);
}

int32_t grammar_prepare(llama_sampler *sampler, llama_token token) { return Grammar::of(sampler).prepare(token); }

} // namespace llamacffi

llamacffi_pieces *llamacffi_pieces_init(const llama_vocab *vocab) {
    return new llamacffi_pieces{std::make_shared<llamacffi::Pieces>(vocab)};
}

void llamacffi_pieces_free(llamacffi_pieces *pieces) { delete pieces; }

llama_sampler *llamacffi_sampler_init_grammar(const llamacffi_grammar_rules *source, const int32_t *tokens,
                                              const llamacffi_pattern *patterns, int32_t n_patterns,
                                              const int32_t *triggers, int32_t n_triggers,
                                              const llamacffi_pieces *pieces) {
    using namespace llamacffi;
    auto rules = std::make_shared<Rules>();
    for (int32_t i = 0; i < source->n_slots; ++i) {
        const int32_t *one = source->slots + 3 * i;
        const bool token = one[0] == SLOT_TOKEN || one[0] == SLOT_NOT_TOKEN;
        rules->slots.push_back({one[0], token ? tokens[one[1]] : one[1], one[2]});
    }
    rules->alternatives.assign(source->alternatives, source->alternatives + source->n_alternatives);
    rules->first.assign(source->first, source->first + source->n_rules + 1);
    for (int32_t i = 0; i < source->n_ranges; ++i) {
        rules->ranges.push_back({source->ranges[2 * i], source->ranges[2 * i + 1]});
    }
    rules->root = source->root;
    for (int32_t k = 0; k < n_patterns; ++k) {
        Pattern &pattern = rules->patterns.emplace_back();
        for (int32_t i = 0; i < patterns[k].n_steps; ++i) {
            const int32_t *one = patterns[k].steps + 3 * i;
            pattern.steps.push_back({one[0], one[1], one[2]});
        }
        for (int32_t i = 0; i < patterns[k].n_ranges; ++i) {
            pattern.ranges.push_back({patterns[k].ranges[2 * i], patterns[k].ranges[2 * i + 1]});
        }
        pattern.n_saved = patterns[k].n_saved;
    }
    rules->triggers.assign(triggers, triggers + n_triggers);
    rules->pieces = pieces->shared;
    return new_grammar(std::make_unique<Grammar>(std::move(rules)));
}
