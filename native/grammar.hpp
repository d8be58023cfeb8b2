// Grammars whose cost does not depend on ambiguity: the parser, and functions for the sampler.
#pragma once

#include "llama.h"
#include "llamacffi/grammar.h"
#include "pattern.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace llamacffi {

// The texts of a vocabulary's tokens, in the order of their bytes.
class Pieces {
  public:
    explicit Pieces(const llama_vocab *vocab);

    struct Piece {
        size_t start, size;
        llama_token id;
        uint32_t shared; // the length of its common prefix with the previous piece
    };

    const char *text(const Piece &one) const { return bytes.data() + one.start; }
    const Piece &of(llama_token id) const { return sorted[place[id]]; }
    bool has(llama_token id) const { return 0 <= id && static_cast<size_t>(id) < place.size(); }

    std::vector<Piece> sorted;
    std::vector<char> ends; // by token: whether it ends a generation

  private:
    std::string bytes;
    std::vector<uint32_t> place;
};

// The kinds of symbols in a rule.
enum SlotKind : int32_t {
    SLOT_END = LLAMACFFI_SLOT_END,
    SLOT_CHARS = LLAMACFFI_SLOT_CHARS,
    SLOT_RULE = LLAMACFFI_SLOT_RULE,
    SLOT_TOKEN = LLAMACFFI_SLOT_TOKEN,
    SLOT_NOT_TOKEN = LLAMACFFI_SLOT_NOT_TOKEN,
};

struct Slot {
    int32_t kind;
    int32_t a, b; // the first of its ranges and how many; or a rule; or a token
};

// The rules of a grammar, which its samplers share.
struct Rules {
    std::vector<Slot> slots;           // alternatives one after the other, each with its end
    std::vector<int32_t> alternatives; // where they begin
    std::vector<int32_t> first;        // by rule: its first alternative; one more at the end
    std::vector<Range> ranges;
    int32_t root;
    std::vector<Pattern> patterns; // of a lazy grammar
    std::vector<llama_token> triggers;
    std::shared_ptr<const Pieces> pieces;
};

// Thrown if a grammar is too ambiguous to continue.
struct TooAmbiguous : std::runtime_error {
    TooAmbiguous() : std::runtime_error("the grammar is too ambiguous: it takes too many steps") {}
};

// A hash map that is cleared in constant time: entries of earlier rounds do not count.
class Table {
  public:
    void clear();
    // Returns the value of a key, which is `value` if it is new, and whether it is new.
    std::pair<int32_t, bool> insert(uint64_t key, int32_t value);

    size_t size() const { return used; }
    // The cost of a lookup in steps, which grows when the table exceeds the CPU caches.
    int64_t cost() const { return 1 + static_cast<int64_t>(std::min<size_t>(used >> 14, 9)); }

  private:
    struct Entry {
        uint64_t key;
        uint32_t round;
        int32_t value;
    };
    void grow();
    std::vector<Entry> entries = std::vector<Entry>(64, Entry{0, 0, 0});
    int shift = 64 - 6; // leaves as many bits as an index into the entries has
    uint32_t round = 1;
    size_t used = 0;
};

// The positions in the rules after some text.  All ways to parse it are followed at once by generalized LL
// parsing: stacks share their common parts, so that their number does not matter.
class Reader {
  public:
    explicit Reader(std::shared_ptr<const Rules> rules);

    // Start over.
    void reset();
    // Whether the text is complete and may end here.
    bool complete() const { return top.complete; }
    // Whether a token may come next.
    bool allows(llama_token id);
    // For each token whether it may come next; valid until the next call.
    const std::vector<char> &allowed();
    // Prepare to read a token, or (unless `whole`) a part of one; false if it is not allowed.
    bool prepare(llama_token id, const char *text, size_t size, bool whole);
    // Read the prepared token, which cannot fail.
    void commit();

  private:
    struct Node {
        int32_t slot; // where to continue
        int32_t edge; // the first of the stacks below, -1 without
        bool popped;
    };
    struct Edge {
        int32_t node, next;
    };
    struct Place {
        int32_t slot, node;
    };
    // The state after some text: the range of `places` where a character or a token is expected.
    struct Level {
        size_t begin, end;
        size_t n_nodes, n_edges, n_places; // the sizes to return to
        bool complete;
        Utf8 partial;
        bool alive() const { return begin < end || complete; }
    };

    void spend(int64_t n);
    void push(int32_t slot, int32_t node);
    void push_rule(int32_t rule, int32_t node);
    void call(const Place &place, int32_t rule);
    void leave(int32_t node);
    void close(Level &level);
    Level begin_level();
    void go_back(const Level &level);
    bool expects(const Level &level, uint32_t low, uint32_t high);
    Level next(const Level &level, unsigned char byte);
    bool follow(const char *text, size_t size, Level &level);
    bool expects_token(llama_token id, bool act);
    bool is_text(const Pieces::Piece &piece) const;
    void mark_texts();
    void mark_tokens();
    void compact();

    std::shared_ptr<const Rules> rules;
    std::vector<Node> nodes;
    std::vector<Edge> edges;
    std::vector<Place> places;
    Level top;   // where the text is
    Level ready; // and where it is after the prepared token
    bool tokens_expected = false;

    std::vector<Place> todo; // of `close`
    Table seen;
    size_t first_node = 0; // of the level that is being computed
    int64_t left = 0;
    size_t compacted = 0;
    std::vector<char> marks;
    bool marked = false;
};

// Whether a sampler is a grammar.
bool is_grammar(const llama_sampler *sampler);
// Whether a grammar allows a token next.
bool grammar_allows(llama_sampler *sampler, llama_token token);
// Returns 0 if a grammar can accept a token, otherwise LLAMACFFI_SAMPLE_* with its state unchanged.
int32_t grammar_prepare(llama_sampler *sampler, llama_token token);

} // namespace llamacffi
