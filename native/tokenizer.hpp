// Tokenizing by pieces: texts of any length in about linear time, and no control token out of a text in
// which special tokens are not to be read.
#pragma once

#include "texts.hpp"

#include "llama.h"

#include <mutex>
#include <string>
#include <string_view>
#include <vector>

// What is known of a vocabulary besides what llama.cpp knows.  It can be used from many threads.
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

    // As llama_tokenize(), which it calls by pieces.  Throws if a part of the text has no token.
    int32_t tokenize(std::string_view text, llama_token *tokens, int32_t size, const Options &options) const;

    // The tokens that are added before and after a text.
    struct Edges {
        Tokens before, after;
    };
    const Edges &edges() const;

    // The end of the piece of a text that begins at `start`.
    struct Cut {
        size_t end;
        bool after_special; // what follows does so; else it goes on with ordinary text
    };
    Cut next_cut(std::string_view text, size_t start, bool parse_special) const;

    // Appends the tokens of a piece, without those that are added; `begins` unless it goes on with
    // ordinary text.
    void piece(std::string_view text, bool begins, const Options &options, Tokens &out, bool is_first) const;

    const llama_vocab *const vocab;

  private:
    // llama_tokenize() as it is, on a stack that suffices.
    int32_t call(std::string_view text, llama_token *tokens, int32_t size, const Options &options) const;

    // Whether any of them must not come out of a text.
    bool has_guarded(const llama_token *tokens, size_t n) const;

    // What is only needed for long texts, and for those with texts of special tokens in them.
    static constexpr uint8_t read_always = 1; // flags of special texts: llama.cpp reads it in any text
    static constexpr uint8_t guarded_text = 2;
    static constexpr uint8_t strips_after = 4; // it takes the blanks that follow along

    struct Details {
        llamacffi::TextSet special;
        llamacffi::PairSet pairs;
        std::string sentinel;   // a text after which no token goes on, and that changes none
        Tokens sentinel_tokens; // its tokens
        bool cuts_text = false; // whether there are places in ordinary text where it can be cut
        bool strips = false;    // whether some special tokens take blanks beside them along
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

    bool advance(); // by a piece; returns whether there is more

    const llamacffi_tokenizer &tokenizer;
    const std::string_view text;
    const llamacffi_tokenizer::Options options;
    llamacffi_tokenizer::Tokens made;

  private:
    size_t start = 0;
    bool begins = true;
};
