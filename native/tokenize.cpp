// Tokens from text and text from tokens, on large enough stacks, for one text or many.
#include "llamacffi/tokenize.h"
#include "stack.hpp"
#include "tokenizer.hpp"

#include "llama.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// upstream: src/llama-vocab.cpp "std::numeric_limits<int32_t>::min()": llama_tokenize()'s value for this.
constexpr int32_t too_long = std::numeric_limits<int32_t>::min();

// More than any tokenizer, built by any compiler, was measured to need for a character.
constexpr size_t stack_per_character_max = 8192;

// In addition to what grows with the text.
constexpr size_t stack_base = 256 * 1024;

// Pieces of a text are rarely longer.
constexpr int64_t piece_usual = 128 * 1024;

// How long one step of a long text may take, so that the caller can be interrupted.
constexpr auto pause = std::chrono::milliseconds(20);

// A thread costs about as much as tokenizing this many bytes.
constexpr int64_t bytes_per_thread = 16 * 1024;

size_t stack_for(int64_t length, size_t per_byte) {
    return stack_base + static_cast<size_t>(length) * per_byte;
}

// upstream: src/llama-vocab.cpp "int32_t total = 0;": llama_detokenize() adds up the lengths in it.
bool fits(const llama_vocab *vocab, const llama_token *tokens, int32_t n_tokens) {
    int64_t total = 0;
    for (int32_t i = 0; i < n_tokens; ++i) {
        total -= std::min(llama_token_to_piece(vocab, tokens[i], nullptr, 0, 0, true), 0);
    }
    return total <= std::numeric_limits<int32_t>::max();
}

int32_t join_pieces(const llama_vocab *vocab, const llama_token *tokens, int32_t n_tokens, char *text,
                    int32_t size, const llamacffi_text_style &style) {
    const auto type = llama_vocab_type(vocab);
    // upstream: src/llama-vocab.cpp LLAMA_VOCAB_TYPE_WPM: always encloses a text in special tokens.
    const bool bert = type == LLAMA_VOCAB_TYPE_WPM;
    const bool has_bos = bert || llama_vocab_get_add_bos(vocab);
    const bool has_end = bert || llama_vocab_get_add_eos(vocab);
    const llama_token end = bert ? llama_vocab_sep(vocab) : llama_vocab_eos(vocab);
    if (style.remove_special && has_bos && n_tokens > 0 && tokens[0] == llama_vocab_bos(vocab)) {
        ++tokens, --n_tokens;
    }
    if (style.remove_special && has_end && n_tokens > 0 && tokens[n_tokens - 1] == end) {
        --n_tokens;
    }
    // SPM writes unknown characters as bytes, so its unknown token must have been in the text itself.
    const int special = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_USER_DEFINED |
                        (type == LLAMA_VOCAB_TYPE_SPM ? LLAMA_TOKEN_ATTR_UNKNOWN : 0);
    int64_t total = 0;
    // upstream: src/llama-vocab.cpp add_space_prefix: llama_tokenize() adds a blank to such a text.
    bool begins = style.strip_blank;
    for (int32_t i = 0; i < n_tokens; ++i) {
        const bool is_special = style.strip_blank && (llama_vocab_get_attr(vocab, tokens[i]) & special);
        const int32_t room = static_cast<int32_t>(std::max<int64_t>(size - total, 0));
        const int32_t n = llama_token_to_piece(vocab, tokens[i], room ? text + total : nullptr, room,
                                               begins && !is_special, style.unparse_special);
        total += std::abs(static_cast<int64_t>(n));
        begins = is_special;
    }
    if (total > std::numeric_limits<int32_t>::max()) {
        return too_long;
    }
    return static_cast<int32_t>(total > size ? -total : total);
}

// What a regular expression may repeat.
constexpr const char *repeated[] = {"a", "A", "aA", "1",  "a1", " ",        "\n", " \n", "\t", "!", "$",
                                    "a ", "!a", "'s", "é", "e\u0301", "中", "の",  "한",  "ก",  "д", "🦙"};

// How much stack it takes to tokenize so many characters of them.
size_t stack_used(const llama_vocab *vocab, size_t n) {
    const auto body = [&] {
        for (const char *unit : repeated) {
            const auto begins = [](char byte) { return (byte & 0xC0) != 0x80; };
            const auto characters = std::count_if(unit, unit + std::strlen(unit), begins);
            std::string text;
            for (size_t i = 0; i < n / static_cast<size_t>(characters); ++i) {
                text += unit;
            }
            const int32_t length = static_cast<int32_t>(text.size());
            try {
                llama_tokenize(vocab, text.data(), length, nullptr, 0, false, false);
            } catch (...) {
                continue; // this vocabulary cannot; the others tell enough
            }
        }
    };
    llamacffi::Thread thread(stack_base + n * stack_per_character_max, body);
    thread.join();
    return thread.used();
}

int32_t detokenize(const llama_vocab *vocab, const llama_token *tokens, int64_t n_tokens, char *text,
                   int32_t size, const llamacffi_text_style &style) {
    if (n_tokens > std::numeric_limits<int32_t>::max()) {
        return too_long;
    }
    const int32_t n = static_cast<int32_t>(n_tokens);
    if (style.exact) {
        return join_pieces(vocab, tokens, n, text, size, style);
    }
    if (!fits(vocab, tokens, n)) {
        return too_long;
    }
    return llama_detokenize(vocab, tokens, n, text, size, style.remove_special, style.unparse_special);
}

} // namespace

// Each worker appends what it makes to an arena of its own.
struct llamacffi_sequences {
    struct Place {
        size_t worker, start, size; // in bytes
    };

    explicit llamacffi_sequences(size_t width, int64_t n) : width(width), places(n) {}

    void fail(int64_t i, const char *what) {
        std::lock_guard<std::mutex> lock(mutex);
        if (i < failed) {
            failed = i;
            error = what;
        }
    }

    const size_t width; // bytes of an element
    std::vector<Place> places;
    std::vector<std::vector<char>> arenas;
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> failed{std::numeric_limits<int64_t>::max()};
    std::string error;
    std::mutex mutex;
};

namespace {

// Processes sequences until none are left or one has failed.  They are taken in order, so that the first
// failure is the one reported.
template <typename Element, typename Room, typename Make>
void work(llamacffi_sequences &all, size_t worker, const Room &room, const Make &make) {
    std::vector<char> &arena = all.arenas[worker];
    std::vector<Element> buffer;
    const int64_t n = static_cast<int64_t>(all.places.size());
    for (int64_t i = all.next++; i < n && i < all.failed; i = all.next++) {
        try {
            const int64_t wanted = std::min<int64_t>(room(i), std::numeric_limits<int32_t>::max());
            buffer.resize(std::max(buffer.size(), static_cast<size_t>(wanted)));
            int32_t made = make(i, buffer.data(), static_cast<int32_t>(buffer.size()));
            if (made < 0 && made != too_long) {
                buffer.resize(-static_cast<int64_t>(made));
                made = make(i, buffer.data(), static_cast<int32_t>(buffer.size()));
            }
            if (made < 0) {
                throw std::length_error("the text has more than 2147483647 tokens: split it");
            }
            const char *data = reinterpret_cast<const char *>(buffer.data());
            all.places[i] = {worker, arena.size(), made * sizeof(Element)};
            arena.insert(arena.end(), data, data + made * sizeof(Element));
        } catch (const std::exception &error) {
            all.fail(i, error.what());
        } catch (...) {
            all.fail(i, "an exception of unknown type");
        }
    }
}

// `room(i)` estimates the maximum number of elements of sequence i.
template <typename Element, typename Room, typename Make>
llamacffi_sequences *make_all(int64_t n, int64_t n_threads, size_t stack, const Room &room,
                              const Make &make) {
    auto all = std::make_unique<llamacffi_sequences>(sizeof(Element), n);
    const size_t workers = static_cast<size_t>(std::clamp<int64_t>(n_threads, 1, std::max<int64_t>(n, 1)));
    all->arenas.resize(workers);
    if (workers == 1) {
        llamacffi::with_stack(stack, [&] { work<Element>(*all, 0, room, make); });
        return all.release();
    }
    std::vector<std::unique_ptr<llamacffi::Thread>> threads;
    for (size_t i = 0; i < workers; ++i) {
        try {
            threads.push_back(std::make_unique<llamacffi::Thread>(
                stack, [&all, i, &room, &make] { work<Element>(*all, i, room, make); }));
        } catch (const std::runtime_error &) {
            if (threads.empty()) {
                throw;
            }
            break; // continue with those that were started
        }
    }
    threads.clear(); // waits
    return all.release();
}

} // namespace

int64_t llamacffi_token_outside(const llama_vocab *vocab, const llama_token *tokens, int64_t n_tokens) {
    const uint32_t size = static_cast<uint32_t>(llama_vocab_n_tokens(vocab));
    bool outside = false;
    for (int64_t i = 0; i < n_tokens; ++i) { // without a branch, so that it is vectorized
        outside |= static_cast<uint32_t>(tokens[i]) >= size;
    }
    if (!outside) {
        return -1;
    }
    return std::find_if(tokens, tokens + n_tokens,
                        [&](llama_token one) { return static_cast<uint32_t>(one) >= size; }) -
           tokens;
}

int32_t llamacffi_textless_tokens(const llama_vocab *vocab, llama_token *tokens) {
    if (llama_vocab_type(vocab) == LLAMA_VOCAB_TYPE_NONE) {
        return 0;
    }
    const llama_token *const first = tokens;
    const int32_t size = llama_vocab_n_tokens(vocab);
    for (llama_token i = 0; i < size; ++i) {
        const int hidden = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;
        if ((llama_vocab_get_attr(vocab, i) & hidden) || llama_vocab_is_eog(vocab, i)) {
            *tokens++ = i;
        }
    }
    return static_cast<int32_t>(tokens - first);
}

size_t llamacffi_stack_per_byte(const llama_vocab *vocab) {
    if (llama_vocab_type(vocab) != LLAMA_VOCAB_TYPE_BPE) {
        return 0; // only BPE uses regular expressions
    }
    constexpr size_t few = 8, many = 512;
    const size_t with_few = stack_used(vocab, few), with_many = stack_used(vocab, many);
    const size_t per_character = with_many > with_few ? (with_many - with_few) / (many - few) : 0;
    return per_character < 16 ? 0 : 2 * per_character; // less than that is not a recursion
}

llamacffi_tokenizer *llamacffi_tokenizer_new(const llama_vocab *vocab, const char *templates, int64_t size) {
    return new llamacffi_tokenizer(vocab, {templates, static_cast<size_t>(size)});
}

void llamacffi_tokenizer_free(llamacffi_tokenizer *tokenizer) { delete tokenizer; }

int32_t llamacffi_tokenize(const llamacffi_tokenizer *tokenizer, const char *text, int64_t length,
                           llama_token *tokens, int32_t size, bool add_special, bool parse_special,
                           size_t stack_per_byte) {
    return tokenizer->tokenize({text, static_cast<size_t>(length)}, tokens, size,
                               {add_special, parse_special, stack_per_byte});
}

llamacffi_tokens *llamacffi_tokens_begin(const llamacffi_tokenizer *tokenizer, const char *text,
                                         int64_t length, bool add_special, bool parse_special,
                                         size_t stack_per_byte) {
    return new llamacffi_tokens(*tokenizer, {text, static_cast<size_t>(length)},
                                {add_special, parse_special, stack_per_byte});
}

bool llamacffi_tokens_more(llamacffi_tokens *tokens) {
    const auto until = std::chrono::steady_clock::now() + pause;
    while (tokens->advance()) {
        if (std::chrono::steady_clock::now() > until) {
            return true;
        }
    }
    return false;
}

int64_t llamacffi_tokens_size(const llamacffi_tokens *tokens) {
    return static_cast<int64_t>(tokens->made.size());
}

void llamacffi_tokens_copy(const llamacffi_tokens *tokens, llama_token *target) {
    std::copy(tokens->made.begin(), tokens->made.end(), target);
}

void llamacffi_tokens_free(llamacffi_tokens *tokens) { delete tokens; }

int32_t llamacffi_detokenize(const llama_vocab *vocab, const llama_token *tokens, int64_t n_tokens,
                             char *text, int32_t size, const llamacffi_text_style *style) {
    return detokenize(vocab, tokens, n_tokens, text, size, *style);
}

llamacffi_sequences *llamacffi_tokenize_all(const llamacffi_tokenizer *tokenizer, const char *text,
                                            const int64_t *starts, int64_t n_texts, bool add_special,
                                            bool parse_special, size_t stack_per_byte,
                                            int32_t n_threads) {
    int64_t longest = 0;
    for (int64_t i = 0; i < n_texts; ++i) {
        longest = std::max(longest, starts[i + 1] - starts[i]);
    }
    longest = std::min(longest, piece_usual); // a longer piece gets its own stack
    const int64_t useful = 1 + (starts[n_texts] - starts[0]) / bytes_per_thread;
    const auto room = [&](int64_t i) { return starts[i + 1] - starts[i] + 8; };
    const auto make = [&](int64_t i, llama_token *tokens, int32_t size) {
        return tokenizer->tokenize({text + starts[i], static_cast<size_t>(starts[i + 1] - starts[i])},
                                   tokens, size, {add_special, parse_special, stack_per_byte});
    };
    return make_all<llama_token>(n_texts, std::min<int64_t>(n_threads, useful),
                                 stack_for(longest, stack_per_byte), room, make);
}

llamacffi_sequences *llamacffi_detokenize_all(const llama_vocab *vocab, const llama_token *tokens,
                                              const int64_t *starts, int64_t n_sequences,
                                              const llamacffi_text_style *style, int32_t n_threads) {
    const int64_t useful = 1 + (starts[n_sequences] - starts[0]) / bytes_per_thread;
    const auto room = [&](int64_t i) { return 8 * (starts[i + 1] - starts[i]) + 64; };
    const auto make = [&](int64_t i, char *text, int32_t size) {
        return detokenize(vocab, tokens + starts[i], starts[i + 1] - starts[i], text, size, *style);
    };
    return make_all<char>(n_sequences, std::min<int64_t>(n_threads, useful), stack_base, room, make);
}

int64_t llamacffi_sequences_failed(const llamacffi_sequences *sequences) {
    const int64_t failed = sequences->failed;
    return failed == std::numeric_limits<int64_t>::max() ? -1 : failed;
}

const char *llamacffi_sequences_error(const llamacffi_sequences *sequences) {
    return sequences->error.c_str();
}

int64_t llamacffi_sequences_size(const llamacffi_sequences *sequences) {
    int64_t size = 0;
    for (const auto &arena : sequences->arenas) {
        size += static_cast<int64_t>(arena.size() / sequences->width);
    }
    return size;
}

void llamacffi_sequences_copy(const llamacffi_sequences *sequences, void *elements, int64_t *starts) {
    char *target = static_cast<char *>(elements);
    for (const auto &place : sequences->places) {
        *starts++ = (target - static_cast<char *>(elements)) / static_cast<int64_t>(sequences->width);
        if (place.size) {
            std::memcpy(target, sequences->arenas[place.worker].data() + place.start, place.size);
        }
        target += place.size;
    }
    *starts = (target - static_cast<char *>(elements)) / static_cast<int64_t>(sequences->width);
}

void llamacffi_sequences_free(llamacffi_sequences *sequences) { delete sequences; }
