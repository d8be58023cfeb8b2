// Where a text can be split without changing its tokens.
#include "tokenizer.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <iterator>

using llamacffi::begins_character;
using llamacffi::character_at;
using llamacffi::character_before;
using llamacffi::count_characters;

namespace {

constexpr int special_attr =
    LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED | LLAMA_TOKEN_ATTR_UNKNOWN;

// The length of a piece.
// upstream: src/llama-vocab.cpp llm_tokenizer_spm_session, tokenizer_st_partition: the time is quadratic in the
// length of a text that an SPM vocabulary lacks, and in the number of special tokens for all vocabularies.
// upstream: src/unicode.cpp unicode_regex_split: compiles the regular expressions again for each piece.
constexpr size_t short_piece = 4 * 1024, long_piece = 64 * 1024, specials_max = 256;

constexpr uint32_t blank = 0x2581, byte_order_mark = 0xFEFF;

// upstream: src/unicode.cpp unicode_byte_to_utf8_map: GPT-2's character for a byte, as BPE vocabularies write it.
uint32_t gpt2_character(unsigned char byte) {
    static const auto table = [] {
        std::array<uint32_t, 256> made{};
        uint32_t next = 256;
        for (uint32_t i = 0; i < 256; ++i) {
            const bool printable = (i > 0x20 && i < 0x7F) || (i > 0xA0 && i != 0xAD);
            made[i] = printable ? i : next++;
        }
        return made;
    }();
    return table[byte];
}

// upstream: src/llama-vocab.cpp isspace: takes a byte beside a special token for whitespace, and so we do.
bool is_blank(char byte) { return std::isspace(static_cast<unsigned char>(byte)) != 0; }

// Letters according to all of the regular expressions that split text into words.
bool is_letter(uint32_t code) {
    constexpr uint32_t ranges[][2] = {
        {'A', 'Z'},       {'a', 'z'},       {0xC0, 0xD6},     {0xD8, 0xF6},     {0xF8, 0xFE},
        {0x3B1, 0x3C9},   {0x410, 0x44F},   {0x5D0, 0x5EA},   {0x620, 0x63F},   {0x641, 0x64A},
        {0x905, 0x939},   {0x3041, 0x3096}, {0x30A1, 0x30FA}, {0x4E00, 0x9FA5}, {0xAC00, 0xD7A3},
    };
    return std::any_of(std::begin(ranges), std::end(ranges),
                       [code](const auto &range) { return code >= range[0] && code <= range[1]; });
}

} // namespace

const llamacffi_tokenizer::Details &llamacffi_tokenizer::details() const {
    std::call_once(once, [this] {
        Details found;
        const llama_token n = llama_vocab_n_tokens(vocab);
        const bool by_pairs = type == LLAMA_VOCAB_TYPE_SPM || type == LLAMA_VOCAB_TYPE_PLAMO2 ||
                              type == LLAMA_VOCAB_TYPE_BPE || type == LLAMA_VOCAB_TYPE_UGM;
        // upstream: src/llama-vocab.cpp llm_tokenizer_hybriddna_session: reads text between two tags differently.
        int dna = 0;
        char piece[256];
        for (llama_token i = 0; i < n; ++i) {
            const std::string_view text = llama_vocab_get_text(vocab, i);
            if (by_pairs) {
                found.pairs.add(text);
            }
            dna += text == "<dna>" || text == "</dna>" || text == "<oov>";
            const int attr = llama_vocab_get_attr(vocab, i);
            found.strips |= (attr & (LLAMA_TOKEN_ATTR_LSTRIP | LLAMA_TOKEN_ATTR_RSTRIP)) != 0;
            const bool guard = !guarded.empty() && guarded[static_cast<size_t>(i)];
            if (!(attr & special_attr) && !guard) {
                continue;
            }
            const uint8_t flags = static_cast<uint8_t>((attr & LLAMA_TOKEN_ATTR_USER_DEFINED ? read_always : 0) |
                                                       (attr & LLAMA_TOKEN_ATTR_RSTRIP ? strips_after : 0) |
                                                       (guard ? guarded_text : 0));
            found.special.add(text, flags);
            const int32_t size = llama_token_to_piece(vocab, i, piece, sizeof piece, 0, true);
            if (guard && size > 0) { // its spelling in text, which may differ
                found.special.add({piece, static_cast<size_t>(size)}, guarded_text);
                std::string with_blanks(text);
                for (size_t at; (at = with_blanks.find("\u2581")) != with_blanks.npos;) {
                    with_blanks.replace(at, 3, " ");
                }
                found.special.add(with_blanks, guarded_text);
            }
        }
        found.special.finish();
        if (type == LLAMA_VOCAB_TYPE_SPM || type == LLAMA_VOCAB_TYPE_UGM) {
            find_sentinel(found);
        }
        found.cuts_text = (type == LLAMA_VOCAB_TYPE_SPM && !found.sentinel.empty()) ||
                          (type == LLAMA_VOCAB_TYPE_BPE && dna < 3) || type == LLAMA_VOCAB_TYPE_WPM ||
                          type == LLAMA_VOCAB_TYPE_PLAMO2;
        lazy = std::move(found);
    });
    return lazy;
}

// A piece that continues ordinary text must not get a leading space, so it is tokenized after a sentinel: a
// text that no token extends beyond, so that its own tokens can be removed.
void llamacffi_tokenizer::find_sentinel(Details &found) const {
    const auto fits = [&](std::string_view text) {
        if (count_characters(text) != 1 || found.pairs.begins(character_at(text, 0).code)) {
            return false;
        }
        try {
            found.sentinel_tokens = all(text, {false, false, 2048});
        } catch (const std::exception &) {
            return false;
        }
        return !found.sentinel_tokens.empty();
    };
    if (type == LLAMA_VOCAB_TYPE_SPM) {
        for (const char *one : {"\U0010FFFD", "\n", "\x01"}) {
            if (fits(one)) {
                found.sentinel = one;
                return;
            }
        }
    }
    for (llama_token i = 0; i < llama_vocab_n_tokens(vocab); ++i) {
        const std::string_view text = llama_vocab_get_text(vocab, i);
        const bool normal = llama_vocab_get_attr(vocab, i) == LLAMA_TOKEN_ATTR_NORMAL;
        if (normal && text != "\u2581" && fits(text) && found.sentinel_tokens.back() == i) {
            found.sentinel = text;
            return;
        }
    }
}

// The longest special text at `i` that llama.cpp reads as its token; its size is 0 if there is none.
// upstream: src/llama-vocab.cpp LLAMA_TOKEN_ATTR_USER_DEFINED: these are read in any text, others on request.
llamacffi_tokenizer::Special llamacffi_tokenizer::longest(const Details &known, std::string_view text,
                                                          size_t i, bool parse_special) {
    Special found{};
    known.special.at(text, i, [&](size_t size, uint8_t flags, size_t number) {
        if (parse_special || (flags & read_always)) {
            found = {size, flags, number};
        }
    });
    return found;
}

// Whether the longest special text at `i` is sure to become its token, provided that none overlaps it from the
// left.
// upstream: src/llama-vocab.cpp cache_special_tokens: searches for the longest ones first, each from left to right.
bool llamacffi_tokenizer::is_taken(const Details &known, std::string_view text, size_t i, bool parse_special) {
    const Special one = longest(known, text, i, parse_special);
    if (known.strips && (is_blank(text[i]) || is_blank(text[i + one.size - 1]))) {
        return false; // a neighbour may strip its whitespace
    }
    for (size_t n = 1; n < one.size; ++n) {
        const Special other = longest(known, text, i + n, parse_special);
        if (other.size > one.size || (other.size == one.size && other.number != one.number)) {
            return false;
        }
    }
    return true;
}

llamacffi_tokenizer::Cut llamacffi_tokenizer::next_cut(std::string_view text, size_t start,
                                                       bool parse_special) const {
    const size_t wanted = start + (type == LLAMA_VOCAB_TYPE_BPE ? long_piece : short_piece);
    if (wanted >= text.size() && text.size() - start <= 2 * short_piece) {
        return {text.size(), false};
    }
    const Details &known = details();
    size_t reach = start; // the end of the special texts so far
    size_t n_special = 0;
    for (size_t i = start; i < text.size();) {
        const bool enough = i >= wanted || n_special >= specials_max;
        if (i > reach && enough && known.cuts_text && begins_character(text[i]) && can_cut(known, text, i)) {
            return {i, false};
        }
        const Special one = longest(known, text, i, parse_special);
        if (one.size == 0) {
            ++i;
            continue;
        }
        ++n_special;
        if (i < reach || !is_taken(known, text, i, parse_special)) {
            reach = std::max(reach, i + one.size);
            ++i;
            continue;
        }
        i += one.size;
        bool divides = parse_special || !(one.flags & guarded_text); // otherwise it will be split itself
        if (one.flags & strips_after) {
            while (i < text.size() && is_blank(text[i]) && longest(known, text, i, parse_special).size == 0) {
                ++i;
            }
            divides = divides && i < text.size() && !is_blank(text[i]);
        }
        reach = i;
        if (divides && enough && i < text.size()) {
            return {i, true};
        }
    }
    return {text.size(), false};
}

// Whether ordinary text can be split at `i` without changing its tokens.
bool llamacffi_tokenizer::can_cut(const Details &known, std::string_view text, size_t i) const {
    switch (type) {
    case LLAMA_VOCAB_TYPE_WPM: // upstream: src/llama-vocab.cpp llm_tokenizer_wpm_session: splits at spaces first
        return text[i] == ' ';
    case LLAMA_VOCAB_TYPE_BPE:
        return can_cut_bpe(known, text, i);
    default: // no token contains these two characters side by side
        uint32_t before = character_before(text, i).code, after = character_at(text, i).code;
        if (type == LLAMA_VOCAB_TYPE_SPM) {
            before = before == ' ' ? blank : before;
            after = after == ' ' ? blank : after;
        }
        return after != byte_order_mark && !known.pairs.has(before, after);
    }
}

// upstream: src/llama-vocab.cpp regex_exprs: these first split the text into words.  All work from left to right,
// and none looks beyond a letter, so that splitting at a space between two letters, or before a new line, does not
// change the words.  For those that do not end a word there, check that no token spans the split.
bool llamacffi_tokenizer::can_cut_bpe(const Details &known, std::string_view text, size_t i) const {
    const auto before = character_before(text, i);
    if (text[i] == ' ' && is_letter(before.code)) {
        const uint32_t last = gpt2_character(static_cast<unsigned char>(text[i - 1]));
        return i + 1 < text.size() && is_letter(character_at(text, i + 1).code) &&
               !known.pairs.has(before.code, ' ') && !known.pairs.has(before.code, blank) &&
               !known.pairs.has(last, gpt2_character(' '));
    }
    if (before.code == '\n' && i > 1) {
        const auto after = character_at(text, i);
        const unsigned char line_end = static_cast<unsigned char>(text[i - 2]);
        const uint32_t first = gpt2_character(static_cast<unsigned char>(text[i]));
        return is_letter(after.code) && line_end > ' ' && line_end < 0x7F &&
               !known.pairs.has('\n', after.code) && !known.pairs.has(gpt2_character('\n'), first);
    }
    return false;
}
