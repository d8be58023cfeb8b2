// Checks of the vocabulary in a file before llama.cpp reads it: some would make it hang, overflow the stack,
// or end the process.
#include "llamacffi/vocabulary.h"

#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace {

// upstream: src/llama-vocab.cpp naive_trie: the tries of RWKV's and T5's tokenizers recurse for each byte of a token,
// even when they are freed, which may happen in any thread.
constexpr size_t trie_bytes_max = 256;

// upstream: src/llama-vocab.cpp max_token_len: at each character of a text, BERT's tokenizer tries all lengths up to
// this.
constexpr size_t word_bytes_max = 1024;

// upstream: src/llama-vocab.cpp suffix_to_score: PLaMo-2's tokenizer visits each prefix of each suffix of each token,
// at a cost that grows with the sum of the cubes of their lengths.
constexpr double plamo_work_max = 4e8;

// upstream: src/llama-vocab.cpp LLM_KV_VOCAB_SIZE: of a model without a vocabulary, creates an entry for each token.
constexpr uint64_t dummies_max = uint64_t(1) << 24;

// The maximum length of what T5's normalizer may replace a character with.
// upstream: src/llama-vocab.cpp prefix_replacements: longer ones take their time for each character of a text.
constexpr size_t replacement_max = 1024;

struct Array {
    const gguf_context *gguf;
    int64_t key;
    size_t size;

    const char *operator[](size_t i) const { return gguf_get_arr_str(gguf, key, i); }
};

std::optional<Array> find_array(const gguf_context *gguf, const char *key,
                                std::initializer_list<gguf_type> types) {
    const int64_t at = gguf_find_key(gguf, key);
    if (at < 0 || gguf_get_kv_type(gguf, at) != GGUF_TYPE_ARRAY) {
        return std::nullopt; // llama.cpp reports this itself
    }
    const gguf_type type = gguf_get_arr_type(gguf, at);
    if (std::find(types.begin(), types.end(), type) == types.end()) {
        return std::nullopt;
    }
    return Array{gguf, at, gguf_get_arr_n(gguf, at)};
}

std::string numbered(const char *format, double first, double second) {
    char text[256];
    std::snprintf(text, sizeof text, format, first, second);
    return text;
}

// Names the first token that is longer than the limit; empty if none is.
std::string check_lengths(const Array &tokens, size_t limit, const char *why) {
    for (size_t i = 0; i < tokens.size; ++i) {
        if (const size_t n = std::strlen(tokens[i]); n > limit) {
            return numbered("token %.0f of the vocabulary has %.0f bytes, ", double(i), double(n)) +
                   "and " + std::to_string(limit) + " is the limit: " + why;
        }
    }
    return "";
}

// Takes the first byte off a text in RWKV's escaped notation; returns -1 at the end.
// upstream: src/llama-vocab.cpp llama_unescape_rwkv_token: reads the notation like this.
int first_byte(std::string_view &text) {
    if (text.empty()) {
        return -1;
    }
    const auto take = [&text] {
        const unsigned char byte = static_cast<unsigned char>(text.front());
        text.remove_prefix(1);
        return byte;
    };
    const unsigned char plain = take();
    if (plain != '\\') {
        return plain;
    }
    if (text.empty()) {
        return -1;
    }
    const auto digit = [&]() -> int {
        const unsigned char one = take();
        return one >= 'a' ? one - 'a' + 10 : one - '0';
    };
    switch (const unsigned char escaped = take()) {
    case 't':
        return '\t';
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 'x':
        if (text.size() < 2) {
            text = {};
            return -1;
        } else {
            const int high = digit();
            return (16 * high + digit()) & 0xFF;
        }
    default:
        return escaped;
    }
}

// upstream: src/llama-vocab.cpp linefeed_id, llm_tokenizer_rwkv_session: after reading a vocabulary, llama.cpp
// tokenizes a newline: it would loop forever if a token begins with a newline, and none is exactly one.
std::string check_rwkv(const Array &tokens) {
    size_t begins = tokens.size;
    for (size_t i = 0; i < tokens.size; ++i) {
        std::string_view text = tokens[i];
        if (first_byte(text) != '\n') {
            continue;
        }
        if (first_byte(text) < 0) {
            return ""; // there is a newline
        }
        begins = i;
    }
    if (begins == tokens.size) {
        return "";
    }
    return "token " + std::to_string(begins) + " of the vocabulary begins with a newline, but no token is a "
           "single newline: llama.cpp would search for it forever";
}

// The number of characters, or -1 if the text is not UTF-8.
// upstream: src/unicode.cpp unicode_cpts_from_utf8: would read that as another text.
int64_t count_characters(const char *text) {
    int64_t n = 0;
    for (const auto *byte = reinterpret_cast<const unsigned char *>(text); *byte; ++n) {
        const int more = *byte < 0x80 ? 0 : *byte < 0xC2 ? -1 : *byte < 0xE0 ? 1 : *byte < 0xF0 ? 2 : 3;
        const unsigned char low = *byte == 0xE0 ? 0xA0 : *byte == 0xF0 ? 0x90 : 0x80;
        const unsigned char high = *byte == 0xED ? 0x9F : *byte == 0xF4 ? 0x8F : 0xBF;
        if (more < 0 || *byte > 0xF4 || (more > 0 && (byte[1] < low || byte[1] > high))) {
            return -1;
        }
        for (int i = 1; i <= more; ++i) {
            if ((byte[i] & 0xC0) != 0x80) {
                return -1;
            }
        }
        byte += 1 + more;
    }
    return n;
}

std::string check_plamo2(const Array &tokens) {
    double work = 0;
    for (size_t i = 0; i < tokens.size; ++i) {
        const double n = static_cast<double>(count_characters(tokens[i]));
        if (n < 0) {
            return "token " + std::to_string(i) + " of the vocabulary is not UTF-8";
        }
        work += n * n * n;
        if (work > plamo_work_max) {
            return numbered("the tokens of the vocabulary up to %.0f, which has %.0f characters, are too long: ",
                            double(i), n) +
                   numbered("the cubes of their lengths add up to %.3g, and above %.3g llama.cpp would take minutes "
                            "to load them",
                            work, plamo_work_max);
        }
    }
    return "";
}

// upstream: src/llama-vocab.cpp xcda_array_view, prefix_replacements_size: the offsets in the map are checked where
// they are used.
std::string check_charsmap(const gguf_context *gguf) {
    const auto map =
        find_array(gguf, "tokenizer.ggml.precompiled_charsmap", {GGUF_TYPE_INT8, GGUF_TYPE_UINT8});
    uint32_t n_trie = 0;
    if (!map || map->size < sizeof n_trie) {
        return "";
    }
    const char *data = static_cast<const char *>(gguf_get_arr_data(gguf, map->key));
    std::memcpy(&n_trie, data, sizeof n_trie);
    size_t length = 0;
    for (size_t i = sizeof n_trie + size_t(n_trie); i < map->size; ++i) {
        length = data[i] ? length + 1 : 0;
        if (length > replacement_max) {
            return numbered("tokenizer.ggml.precompiled_charsmap replaces a character by more than %.0f "
                            "bytes (at byte %.0f)",
                            double(replacement_max), double(i));
        }
    }
    return "";
}

// upstream: src/llama-vocab.cpp llm_tokenizer_spm_session, llm_tokenizer_ugm_session: compare scores, which only finite
// ones allow.
std::string check_scores(const gguf_context *gguf, size_t n_tokens) {
    const auto scores = find_array(gguf, "tokenizer.ggml.scores", {GGUF_TYPE_FLOAT32});
    if (!scores) {
        return "";
    }
    const float *data = static_cast<const float *>(gguf_get_arr_data(gguf, scores->key));
    for (size_t i = 0; i < std::min(scores->size, n_tokens); ++i) {
        if (!std::isfinite(data[i])) {
            return numbered("the score of token %.0f of the vocabulary is %g: it must be a finite number",
                            double(i), data[i]);
        }
    }
    return "";
}

// upstream: src/llama-vocab.cpp "GGML_ASSERT(id_to_token.size() == token_to_id.size())": would only report that this
// assertion has failed.
std::string check_unique(const Array &tokens) {
    std::unordered_map<std::string_view, size_t> seen(2 * tokens.size);
    for (size_t i = 0; i < tokens.size; ++i) {
        const auto [first, is_new] = seen.emplace(tokens[i], i);
        // upstream: src/llama-vocab.cpp "[EMPTY_": what it renames empty tokens to.
        if (!is_new && !first->first.empty()) {
            return "tokens " + std::to_string(first->second) + " and " + std::to_string(i) +
                   " of the vocabulary have the same text: each must have its own";
        }
    }
    return "";
}

std::string check_dummies(uint64_t n) {
    return n <= dummies_max ? ""
                            : "a vocabulary of " + std::to_string(n) + " tokens without texts is too large: the limit is " +
                                  std::to_string(dummies_max);
}

std::string check(const gguf_context *gguf, std::string_view kind, uint64_t n_dummies) {
    if (kind == "no_vocab" || kind == "none") {
        return check_dummies(n_dummies);
    }
    const auto tokens = find_array(gguf, "tokenizer.ggml.tokens", {GGUF_TYPE_STRING});
    if (!tokens) {
        return "";
    }
    if (tokens->size == 0) {
        return "its vocabulary has no tokens; if the model needs none, set tokenizer.ggml.model to 'no_vocab'";
    }
    std::string wrong;
    if (kind == "rwkv" || kind == "t5") {
        wrong = check_lengths(*tokens, trie_bytes_max,
                              "llama.cpp would recurse for each byte");
    } else if (kind == "bert") {
        wrong = check_lengths(*tokens, word_bytes_max,
                              "llama.cpp would try that many bytes at each character of a text");
    } else if (kind == "plamo2") {
        wrong = check_plamo2(*tokens);
    }
    if (wrong.empty() && kind == "rwkv") {
        wrong = check_rwkv(*tokens);
    }
    if (wrong.empty() && kind == "t5") {
        wrong = check_charsmap(gguf);
    }
    if (wrong.empty() && (kind == "t5" || kind == "llama")) {
        wrong = check_scores(gguf, tokens->size);
    }
    return wrong.empty() ? check_unique(*tokens) : wrong;
}

} // namespace

int32_t llamacffi_vocab_fault(const gguf_context *gguf, const char *kind, uint64_t n_dummies, char *text,
                              size_t size) {
    const std::string wrong = check(gguf, kind, n_dummies);
    return std::snprintf(text, size, "%s", wrong.c_str());
}
