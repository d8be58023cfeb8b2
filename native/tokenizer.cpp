#include "tokenizer.hpp"

#include "compat.hpp"
#include "llamacffi/tokenize.h"
#include "stack.hpp"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>

using llamacffi::begins_character;
using llamacffi::character_at;
using llamacffi::character_before;
using llamacffi::count_characters;

namespace {

// In addition to what grows with the text.
constexpr size_t stack_base = 256 * 1024;

constexpr uint32_t byte_order_mark = 0xFEFF;

bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool is_bracketed(std::string_view text) {
    return text.size() > 2 && ((text.front() == '<' && text.back() == '>') ||
                               (text.front() == '[' && text.back() == ']'));
}

// Whether a user-defined token structures a chat, rather than being a word or tag of ordinary text.  The
// vocabulary does not say, so its spelling and the chat templates decide.
bool is_marker(std::string_view text, std::string_view templates) {
    const auto within = [&](std::string_view open, std::string_view close) {
        return text.size() > open.size() + close.size() && starts_with(text, open) && ends_with(text, close);
    };
    if (within("<|", "|>") || within("<｜", "｜>")) {
        return true;
    }
    return is_bracketed(text) && templates.find(text) != templates.npos;
}

// The bytes that tokens of an RWKV vocabulary begin with but that are not tokens themselves.
// upstream: src/llama-vocab.cpp llm_tokenizer_rwkv_session: would loop forever on one.
std::array<bool, 256> endless_bytes(const llama_vocab *vocab) {
    std::array<bool, 256> begins{}, single{};
    if (llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_RWKV) {
        return begins;
    }
    std::string piece(256, '\0');
    for (llama_token i = 0; i < llama_vocab_n_tokens(vocab); ++i) {
        const auto write = [&] {
            return llama_token_to_piece(vocab, i, piece.data(), static_cast<int32_t>(piece.size()), 0, true);
        };
        int32_t size = write();
        if (size < 0) {
            piece.resize(static_cast<size_t>(-size));
            size = write();
        }
        if (size > 0) {
            (size == 1 ? single : begins)[static_cast<unsigned char>(piece[0])] = true;
        }
    }
    for (size_t byte = 0; byte < begins.size(); ++byte) {
        begins[byte] = begins[byte] && !single[byte];
    }
    return begins;
}

} // namespace

llamacffi_tokenizer::llamacffi_tokenizer(const llama_vocab *of, std::string_view templates)
    : vocab(of), type(llama_vocab_type(of)) {
    if (type == LLAMA_VOCAB_TYPE_NONE || llamacffi::is_test_vocabulary(type)) {
        return;
    }
    const llama_token n = llama_vocab_n_tokens(vocab);
    guarded.resize(static_cast<size_t>(n));
    for (llama_token i = 0; i < n; ++i) {
        const int attr = llama_vocab_get_attr(vocab, i);
        const std::string_view text = llama_vocab_get_text(vocab, i);
        const bool user_defined = (attr & LLAMA_TOKEN_ATTR_USER_DEFINED) != 0;
        // Some files mark the end-of-generation token as a normal one.
        const bool may_end = user_defined || (attr == LLAMA_TOKEN_ATTR_NORMAL && is_bracketed(text));
        const bool wanted = (attr & LLAMA_TOKEN_ATTR_CONTROL) || (may_end && llama_vocab_is_eog(vocab, i)) ||
                            (user_defined && is_marker(text, templates));
        // A single character has no other representation.
        if (wanted && count_characters(text) > 1) {
            guarded[static_cast<size_t>(i)] = guards = true;
        }
    }
    // Neither has text that the vocabulary does not know, whatever type the file gives its token.
    const std::array<bool, 256> endless = endless_bytes(vocab);
    for (const std::string_view unknown : {"\u2603", "\U0001F999", "\U00013000", "\uF234"}) {
        if (std::any_of(unknown.begin(), unknown.end(),
                        [&](char byte) { return endless[static_cast<unsigned char>(byte)]; })) {
            continue;
        }
        try {
            for (const llama_token one : all(unknown, {false, false, 2048})) {
                guarded[static_cast<size_t>(one)] = false;
            }
        } catch (const std::exception &) {
            continue;
        }
    }
}

int32_t llamacffi_tokenizer::call(std::string_view text, llama_token *tokens, int32_t size,
                                  const Options &options) const {
    int32_t n = 0;
    const auto body = [&] {
        try {
            n = llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), tokens, size,
                               options.add_special, options.parse_special);
            // upstream: src/llama-vocab.cpp LLAMA_TOKEN_NULL: stands for a missing unknown token in the result.
            if (n > 0 && llamacffi_token_outside(vocab, tokens, n) >= 0) {
                throw std::out_of_range("");
            }
        } catch (const std::out_of_range &) { // upstream: src/llama-vocab.cpp byte_to_token: throws it, too
            throw std::runtime_error("the vocabulary has no token for a part of the text");
        }
    };
    llamacffi::with_stack(stack_base + text.size() * options.stack_per_byte, body);
    return n;
}

bool llamacffi_tokenizer::has_guarded(const llama_token *tokens, size_t n) const {
    return guards && std::any_of(tokens, tokens + n, [this](llama_token one) {
               return guarded[static_cast<size_t>(one)];
           });
}

const llamacffi_tokenizer::Edges &llamacffi_tokenizer::edges() const {
    std::call_once(once_edges, [this] {
        const Tokens both = all("", {true, false, 0});
        const bool is_end =
            both.size() == 1 && !(llama_vocab_get_add_bos(vocab) && both[0] == llama_vocab_bos(vocab));
        const auto middle = both.begin() + (both.empty() || is_end ? 0 : 1);
        lazy_edges = {Tokens(both.begin(), middle), Tokens(middle, both.end())};
    });
    return lazy_edges;
}

int32_t llamacffi_tokenizer::tokenize(std::string_view text, llama_token *tokens, int32_t size,
                                      const Options &options) const {
    if (text.size() <= LLAMACFFI_SHORT_TEXT) {
        const int32_t n = call(text, tokens, size, options);
        const bool made = n >= 0;
        if (options.parse_special || !guards || (made && !has_guarded(tokens, static_cast<size_t>(n)))) {
            return n;
        }
        if (made && options.add_special) { // the added tokens are control tokens
            const Edges &added = edges();
            const size_t middle = static_cast<size_t>(n) - added.before.size() - added.after.size();
            if (!has_guarded(tokens + added.before.size(), middle)) {
                return n;
            }
        }
    }
    llamacffi_tokens all(*this, text, options);
    while (all.advance()) {
    }
    if (all.made.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
        return std::numeric_limits<int32_t>::min(); // llama_tokenize()'s value for this
    }
    const int32_t n = static_cast<int32_t>(all.made.size());
    if (n > size) {
        return -n;
    }
    std::copy(all.made.begin(), all.made.end(), tokens);
    return n;
}

bool llamacffi_tokens::advance() {
    const auto cut = tokenizer.next_cut(text, start, options.parse_special);
    const std::string_view part = text.substr(start, cut.end - start);
    if (start == 0 && options.add_special) {
        made = tokenizer.edges().before;
    }
    tokenizer.piece(part, begins, options, made, start == 0);
    start = cut.end;
    begins = cut.after_special;
    if (start < text.size()) {
        return true;
    }
    if (options.add_special) {
        const auto &after = tokenizer.edges().after;
        made.insert(made.end(), after.begin(), after.end());
    }
    return false;
}

// llama_tokenize() with a large enough buffer.
llamacffi_tokenizer::Tokens llamacffi_tokenizer::all(std::string_view text, const Options &options) const {
    Tokens tokens(text.size() + 8);
    int32_t n = call(text, tokens.data(), static_cast<int32_t>(tokens.size()), options);
    if (n == std::numeric_limits<int32_t>::min()) {
        throw std::length_error("the text has more than 2147483647 tokens: split it");
    }
    if (n < 0) {
        tokens.resize(static_cast<size_t>(-n));
        n = call(text, tokens.data(), -n, options);
    }
    tokens.resize(static_cast<size_t>(n));
    return tokens;
}

// The tokens of a piece, guarded ones included.
llamacffi_tokenizer::Tokens llamacffi_tokenizer::plain(std::string_view text, bool begins,
                                                       const Options &options) const {
    const Options inner{false, options.parse_special, options.stack_per_byte};
    if (begins || text.empty()) {
        return all(text, inner);
    }
    if (type == LLAMA_VOCAB_TYPE_PLAMO2 && character_at(text, 0).code == byte_order_mark) {
        // upstream: src/llama-vocab.cpp "0xFEFF": drops a byte order mark at the beginning of a text.
        return all("\uFEFF" + std::string(text), inner);
    }
    const Details &known = details();
    if (known.sentinel.empty()) {
        return all(text, inner);
    }
    Tokens tokens = all(known.sentinel + std::string(text), inner);
    const Tokens &before = known.sentinel_tokens;
    if (tokens.size() < before.size() || !std::equal(before.begin(), before.end(), tokens.begin())) {
        return all(text, inner);
    }
    tokens.erase(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(before.size()));
    return tokens;
}

void llamacffi_tokenizer::piece(std::string_view text, bool begins, const Options &options, Tokens &out,
                                bool is_first) const {
    Tokens tokens;
    // upstream: src/llama-vocab.cpp append_bos, check_double_bos_eos: warns of a second BOS in such a text.
    if (is_first && options.add_special && options.parse_special) {
        const Edges &added = edges();
        const Tokens whole = all(text, options);
        tokens.assign(whole.begin() + static_cast<std::ptrdiff_t>(added.before.size()),
                      whole.end() - static_cast<std::ptrdiff_t>(added.after.size()));
    } else {
        tokens = plain(text, begins, options);
    }
    if (options.parse_special || !has_guarded(tokens.data(), tokens.size())) {
        out.insert(out.end(), tokens.begin(), tokens.end());
    } else {
        around(text, begins, options, out);
    }
}

// Cuts the text after the first character of each guarded token in it, and tokenizes the parts.
void llamacffi_tokenizer::around(std::string_view text, bool begins, const Options &options, Tokens &out) const {
    const Details &known = details();
    size_t start = 0;
    for (size_t i = 0; i <= text.size(); ++i) {
        bool cut = i == text.size();
        if (i > start && !cut && begins_character(text[i])) {
            const size_t before = i - character_before(text, i).size;
            known.special.at(text, before, [&](size_t size, uint8_t flags, size_t) {
                cut |= (flags & guarded_text) && before + size > i;
            });
        }
        if (cut && i > start) {
            halves(text.substr(start, i - start), begins, options, out);
            start = i;
            begins = false;
        }
    }
}

// Halves a text that still becomes a guarded token (through another spelling) until it does not.
void llamacffi_tokenizer::halves(std::string_view text, bool begins, const Options &options, Tokens &out) const {
    const Tokens tokens = plain(text, begins, options);
    if (!has_guarded(tokens.data(), tokens.size()) || count_characters(text) < 2) {
        out.insert(out.end(), tokens.begin(), tokens.end());
        return;
    }
    size_t middle = std::max<size_t>(text.size() / 2, character_at(text, 0).size);
    while (!begins_character(text[middle])) {
        ++middle;
        if (middle == text.size()) { // the last character is longer than half of the text
            middle -= character_before(text, middle).size;
            break;
        }
    }
    halves(text.substr(0, middle), begins, options, out);
    halves(text.substr(middle), false, options, out);
}
