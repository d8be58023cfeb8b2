// Tokenizing in pieces: text of any length in nearly linear time, and never a control token from text unless
// special tokens are to be parsed.
#pragma once

#include "texts.hpp"

#include "llama.h"

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

// Facts about a vocabulary that llama.cpp does not provide.  Can be used from many threads.
struct llamacffi_tokenizer {
  public:
    using Tokens = std::vector<llama_token>;

    // `templates` are the chat templates of the model, one after the other.
    llamacffi_tokenizer(const llama_vocab *vocab, std::string_view templates);

    // How to tokenize.
    struct Options {
        bool add_special, parse_special;
        size_t stack_per_byte;
    };

    // As llama_tokenize(), which it calls for each piece.  Throws if the vocabulary cannot represent the text.
    int32_t tokenize(std::string_view text, llama_token *tokens, int32_t size, const Options &options) const;

    // The tokens that are added before and after a text.
    struct Edges {
        Tokens before, after;
    };
    const Edges &edges() const;

    // The end of the piece of a text that begins at `start`.
    struct Cut {
        size_t end;
        bool after_special; // the next piece follows a special token; otherwise it continues ordinary text
    };
    Cut next_cut(std::string_view text, size_t start, bool parse_special) const;

    // Appends the tokens of a piece, without added ones; `begins` unless it continues ordinary text.
    void piece(std::string_view text, bool begins, const Options &options, Tokens &out, bool is_first) const;

    const llama_vocab *const vocab;

  private:
    // llama_tokenize() itself, on a large enough stack.
    int32_t call(std::string_view text, llama_token *tokens, int32_t size, const Options &options) const;

    // Whether there are tokens that text must not become.
    bool has_guarded(const llama_token *tokens, size_t n) const;

    // Only needed for long texts, and for texts that contain special tokens.
    static constexpr uint8_t read_always = 1; // flags of special texts: llama.cpp reads it in any text
    static constexpr uint8_t guarded_text = 2;
    static constexpr uint8_t strips_after = 4; // it strips the whitespace after it

    struct Details {
        llamacffi::TextSet special;
        llamacffi::PairSet pairs;
        std::string sentinel;   // a text that neither merges with what follows nor changes its tokens
        Tokens sentinel_tokens; // its tokens
        bool cuts_text = false; // whether ordinary text can be split
        bool strips = false;    // whether some special tokens strip whitespace beside them
    };
    const Details &details() const;
    void find_sentinel(Details &found) const;

    Tokens all(std::string_view text, const Options &options) const;
    Tokens plain(std::string_view text, bool begins, const Options &options) const;
    void around(std::string_view text, bool begins, const Options &options, Tokens &out) const;
    void halves(std::string_view text, bool begins, const Options &options, Tokens &out) const;
    struct Special {
        size_t size;
        uint8_t flags;
        size_t number;
    };
    static Special longest(const Details &known, std::string_view text, size_t i, bool parse_special);
    static bool is_taken(const Details &known, std::string_view text, size_t i, bool parse_special);
    bool can_cut(const Details &known, std::string_view text, size_t i) const;
    bool can_cut_bpe(const Details &known, std::string_view text, size_t i) const;

    const enum llama_vocab_type type;
    std::vector<bool> guarded; // by token
    bool guards = false;
    mutable std::once_flag once, once_edges;
    mutable Details lazy;
    mutable Edges lazy_edges;
};

// A text that is being tokenized, and its tokens so far.
struct llamacffi_tokens {
    llamacffi_tokens(const llamacffi_tokenizer &with, std::string_view of,
                     const llamacffi_tokenizer::Options &how)
        : tokenizer(with), text(of), options(how) {}

    bool advance(); // by one piece; returns whether there are more

    const llamacffi_tokenizer &tokenizer;
    const std::string_view text;
    const llamacffi_tokenizer::Options options;
    llamacffi_tokenizer::Tokens made;

  private:
    size_t start = 0;
    bool begins = true;
};
