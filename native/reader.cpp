// The parser for grammars.  See grammar.hpp.
#include "grammar.hpp"

#include <algorithm>

namespace llamacffi {

namespace {

// The maximum number of steps of one call, about a second.  A step is a lookup in a table, or a visit to a
// place where a character is expected.
constexpr int64_t MAX_STEPS = 100000000;
// The maximum number of stack parts to keep.
constexpr size_t MAX_STORED = 4000000;

// Keys of `Reader::seen`: what they are about is in the upper bits.
constexpr uint64_t key(uint64_t kind, int32_t slot, int32_t node) {
    return kind << 62 | static_cast<uint64_t>(slot) << 31 | static_cast<uint32_t>(node);
}
constexpr uint64_t PLACE = 0, NODE = 1, EDGE = 2;

constexpr int32_t BOTTOM = 0; // the empty stack

} // namespace

void Table::clear() {
    used = 0;
    if (++round == 0) { // after some thousand tokens over a large vocabulary
        std::fill(entries.begin(), entries.end(), Entry{0, 0, 0});
        round = 1;
    }
}

std::pair<int32_t, bool> Table::insert(uint64_t wanted, int32_t value) {
    if (used * 2 >= entries.size()) {
        grow();
    }
    // The upper bits of the product depend on all bits of the key.
    size_t i = wanted * 0x9E3779B97F4A7C15u >> shift;
    for (; entries[i].round == round; i = (i + 1) & (entries.size() - 1)) {
        if (entries[i].key == wanted) {
            return {entries[i].value, false};
        }
    }
    entries[i] = {wanted, round, value};
    ++used;
    return {value, true};
}

void Table::grow() {
    std::vector<Entry> old(entries.size() * 2, Entry{0, 0, 0});
    old.swap(entries);
    --shift;
    const uint32_t before = round;
    round = 1, used = 0;
    for (const Entry &one : old) {
        if (one.round == before) {
            insert(one.key, one.value);
        }
    }
}

Reader::Reader(std::shared_ptr<const Rules> shared) : rules(std::move(shared)) { reset(); }

void Reader::reset() {
    left = MAX_STEPS;
    nodes.assign(1, Node{-1, -1, false});
    edges.clear();
    places.clear();
    marked = false;
    top = begin_level();
    push_rule(rules->root, BOTTOM);
    close(top);
    ready = top;
    commit();
}

void Reader::spend(int64_t n) {
    left -= n;
    if (left < 0) {
        throw TooAmbiguous();
    }
}

Reader::Level Reader::begin_level() {
    seen.clear();
    todo.clear();
    first_node = nodes.size();
    return {places.size(), places.size(), nodes.size(), edges.size(), places.size(), false, Utf8()};
}

void Reader::go_back(const Level &level) {
    nodes.resize(level.n_nodes);
    edges.resize(level.n_edges);
    places.resize(level.n_places);
}

void Reader::push(int32_t slot, int32_t node) {
    spend(seen.cost());
    if (nodes.size() + edges.size() + seen.size() > MAX_STORED) {
        throw TooAmbiguous();
    }
    if (seen.insert(key(PLACE, slot, node), 0).second) {
        todo.push_back({slot, node});
    }
}

void Reader::push_rule(int32_t rule, int32_t node) {
    for (int32_t i = rules->first[rule]; i < rules->first[rule + 1]; ++i) {
        push(rules->alternatives[i], node);
    }
}

// Enters a rule, after which parsing continues at the next slot.
void Reader::call(const Place &place, int32_t rule) {
    const int32_t after = place.slot + 1;
    if (rules->slots[after].kind == SLOT_END) { // a tail call: the stack need not grow
        return push_rule(rule, place.node);
    }
    spend(2 * seen.cost());
    const auto next = static_cast<int32_t>(nodes.size());
    const auto [node, is_new] = seen.insert(key(NODE, after, 0), next);
    if (is_new) {
        nodes.push_back({after, -1, false});
    }
    if (seen.insert(key(EDGE, after, place.node), 0).second) {
        edges.push_back({place.node, nodes[node].edge});
        nodes[node].edge = static_cast<int32_t>(edges.size()) - 1;
        if (nodes[node].popped) { // already left, since the rule can be empty
            push(after, place.node);
        }
    }
    if (is_new) {
        push_rule(rule, node);
    }
}

// Continues after a rule that has ended.
void Reader::leave(int32_t node) {
    if (static_cast<size_t>(node) >= first_node) {
        nodes[node].popped = true;
    }
    for (int32_t i = nodes[node].edge; i >= 0; i = edges[i].next) {
        push(nodes[node].slot, edges[i].node);
    }
}

// Processes `todo` until all places expect a character or a token.
void Reader::close(Level &level) {
    while (!todo.empty()) {
        const Place place = todo.back();
        todo.pop_back();
        const Slot &slot = rules->slots[place.slot];
        if (slot.kind == SLOT_RULE) {
            call(place, slot.a);
        } else if (slot.kind != SLOT_END) {
            places.push_back(place);
        } else if (place.node == BOTTOM) {
            level.complete = true;
        } else {
            leave(place.node);
        }
    }
    level.end = level.n_places = places.size();
    level.n_nodes = nodes.size();
    level.n_edges = edges.size();
}

// Whether a character from `low` to `high` is expected.
bool Reader::expects(const Level &level, uint32_t low, uint32_t high) {
    spend(static_cast<int64_t>(level.end - level.begin));
    return std::any_of(places.begin() + level.begin, places.begin() + level.end, [&](const Place &one) {
        const Slot &slot = rules->slots[one.slot];
        const Range *first = rules->ranges.data() + slot.a, *end = first + slot.b;
        if (slot.kind != SLOT_CHARS) {
            return false;
        }
        first = std::lower_bound(first, end, low, [](const Range &r, uint32_t c) { return r.high < c; });
        return first != end && first->low <= high;
    });
}

// Returns the level after one more byte.
Reader::Level Reader::next(const Level &level, unsigned char byte) {
    Utf8 partial = level.partial;
    const Utf8::Result result = partial.add(byte);
    Level after = begin_level();
    if (result == Utf8::MORE && expects(level, partial.low(), partial.high())) {
        after.begin = level.begin, after.end = level.end, after.partial = partial;
    }
    if (result != Utf8::CHARACTER) {
        return after;
    }
    spend(static_cast<int64_t>(level.end - level.begin));
    for (size_t i = level.begin; i < level.end; ++i) {
        const Place place = places[i];
        const Slot &slot = rules->slots[place.slot];
        const Range *first = rules->ranges.data() + slot.a, *end = first + slot.b;
        if (slot.kind != SLOT_CHARS) {
            continue;
        }
        first = std::lower_bound(first, end, partial.value,
                                 [](const Range &r, uint32_t c) { return r.high < c; });
        if (first != end && first->low <= partial.value) {
            push(place.slot + 1, place.node);
        }
    }
    close(after);
    return after;
}

// Reads bytes as long as they are allowed.
bool Reader::follow(const char *text, size_t size, Level &level) {
    for (size_t i = 0; i < size && level.alive(); ++i) {
        level = next(level, static_cast<unsigned char>(text[i]));
    }
    return level.alive();
}

// Whether the rules expect this token as such; if `act`, continues after it.
bool Reader::expects_token(llama_token id, bool act) {
    bool found = false;
    for (size_t i = top.begin; tokens_expected && i < top.end && !top.partial.missing; ++i) {
        const Place place = places[i];
        const Slot &slot = rules->slots[place.slot];
        if ((slot.kind == SLOT_TOKEN && slot.a == id) || (slot.kind == SLOT_NOT_TOKEN && slot.a != id)) {
            found = true;
            if (act) {
                push(place.slot + 1, place.node);
            }
        }
    }
    return found;
}

// Whether a token stands for text, unlike one that ends a generation or is empty.
bool Reader::is_text(const Pieces::Piece &piece) const {
    return !rules->pieces->ends[piece.id] && piece.size && *rules->pieces->text(piece);
}

bool Reader::allows(llama_token id) {
    const Pieces &pieces = *rules->pieces;
    if (!pieces.has(id) || marked) {
        return marked && pieces.has(id) && marks[id];
    }
    const Pieces::Piece &piece = pieces.of(id);
    if (!is_text(piece)) {
        return pieces.ends[id] && complete();
    }
    left = MAX_STEPS;
    Level level = top;
    go_back(top);
    return expects_token(id, false) || follow(pieces.text(piece), piece.size, level);
}

const std::vector<char> &Reader::allowed() {
    if (!marked) {
        left = MAX_STEPS;
        go_back(top);
        mark_texts();
        mark_tokens();
        marked = true;
    }
    return marks;
}

// Marks the tokens whose text is allowed.
void Reader::mark_texts() {
    const Pieces &pieces = *rules->pieces;
    marks.assign(pieces.sorted.size(), 0);
    std::vector<Level> levels = {top}; // after each byte of a piece
    for (const Pieces::Piece &piece : pieces.sorted) {
        if (!is_text(piece)) {
            marks[piece.id] = pieces.ends[piece.id] && complete();
        }
        // A rejected prefix rules out all pieces that share it.
        levels.resize(std::min<size_t>(levels.size(), piece.shared + 1));
        if (!levels.back().alive()) {
            continue;
        }
        go_back(levels.back());
        const char *text = pieces.text(piece);
        while (levels.back().alive() && levels.size() <= piece.size) {
            levels.push_back(next(levels.back(), static_cast<unsigned char>(text[levels.size() - 1])));
        }
        if (is_text(piece)) {
            marks[piece.id] = levels.back().alive();
        }
    }
    go_back(top);
}

// Marks the tokens that the rules name.
void Reader::mark_tokens() {
    const Pieces &pieces = *rules->pieces;
    for (size_t i = top.begin; tokens_expected && i < top.end && !top.partial.missing; ++i) {
        const Slot &slot = rules->slots[places[i].slot];
        if (slot.kind == SLOT_TOKEN) {
            marks[slot.a] = marks[slot.a] || is_text(pieces.of(slot.a));
        } else if (slot.kind == SLOT_NOT_TOKEN) {
            spend(static_cast<int64_t>(pieces.sorted.size()));
            for (const Pieces::Piece &piece : pieces.sorted) {
                marks[piece.id] = marks[piece.id] || (piece.id != slot.a && is_text(piece));
            }
        }
    }
}

bool Reader::prepare(llama_token id, const char *text, size_t size, bool whole) {
    left = MAX_STEPS;
    go_back(top);
    ready = top;
    const bool may = follow(text, size, ready);
    Level after = begin_level();
    if (whole && expects_token(id, true)) {
        if (may && !ready.partial.missing) { // both: the text, and the token that spells it
            for (size_t i = ready.begin; i < ready.end; ++i) {
                push(places[i].slot, places[i].node);
            }
            after.complete = ready.complete;
        }
        close(after);
        ready = after;
        return true;
    }
    return may;
}

void Reader::commit() {
    const size_t n = ready.end - ready.begin;
    std::copy(places.begin() + ready.begin, places.begin() + ready.end, places.begin());
    places.resize(n);
    ready.begin = 0, ready.end = ready.n_places = n;
    ready.n_nodes = nodes.size(), ready.n_edges = edges.size();
    top = ready;
    marked = false;
    tokens_expected = std::any_of(places.begin(), places.end(), [this](const Place &one) {
        const int32_t kind = rules->slots[one.slot].kind;
        return kind == SLOT_TOKEN || kind == SLOT_NOT_TOKEN;
    });
    if (nodes.size() > 2 * compacted + 1024) {
        compact();
    }
}

// Removes stacks that are not reachable any more.
void Reader::compact() {
    std::vector<int32_t> number(nodes.size(), -1), found = {BOTTOM};
    number[BOTTOM] = 0;
    const auto reach = [&](int32_t node) {
        if (number[node] < 0) {
            number[node] = 0;
            found.push_back(node);
        }
    };
    for (const Place &one : places) {
        reach(one.node);
    }
    for (size_t i = 0; i < found.size(); ++i) {
        for (int32_t e = nodes[found[i]].edge; e >= 0; e = edges[e].next) {
            reach(edges[e].node);
        }
    }
    std::sort(found.begin(), found.end());
    std::vector<Node> kept;
    std::vector<Edge> links;
    for (size_t i = 0; i < found.size(); ++i) {
        number[found[i]] = static_cast<int32_t>(i);
    }
    for (int32_t node : found) {
        int32_t edge = -1;
        for (int32_t e = nodes[node].edge; e >= 0; e = edges[e].next) {
            links.push_back({number[edges[e].node], edge});
            edge = static_cast<int32_t>(links.size()) - 1;
        }
        kept.push_back({nodes[node].slot, edge, false});
    }
    for (Place &one : places) {
        one.node = number[one.node];
    }
    nodes.swap(kept);
    edges.swap(links);
    top.n_nodes = nodes.size(), top.n_edges = edges.size();
    compacted = nodes.size();
}

} // namespace llamacffi
