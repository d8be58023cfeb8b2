// Regular expressions that are searched in a growing text, reading each byte once.
// upstream: src/llama-grammar.cpp "std::regex_search(input, match, regex)": searches the whole text again for each
// token, may take exponential time, and recurses for each character.
#pragma once

#include "llamacffi/grammar.h"

#include <cstdint>
#include <cstddef>
#include <vector>

namespace llamacffi {

struct Range {
    uint32_t low, high;
};

// A character that may still lack some bytes.
struct Utf8 {
    uint32_t value = 0;
    int32_t missing = 0;
    uint32_t least = 0; // the smallest that needs this many bytes

    enum Result { MORE, CHARACTER, WRONG };

    Result add(unsigned char byte);
    // The characters that it may become.
    uint32_t low() const;
    uint32_t high() const;
};

enum PatternOp : int32_t {
    PATTERN_MATCH = LLAMACFFI_PATTERN_MATCH,
    PATTERN_SET = LLAMACFFI_PATTERN_SET,    // a character of `b` ranges from `a` on
    PATTERN_JUMP = LLAMACFFI_PATTERN_JUMP,   // to `a`
    PATTERN_SPLIT = LLAMACFFI_PATTERN_SPLIT,  // to `a`, or else to `b`
    PATTERN_SAVE = LLAMACFFI_PATTERN_SAVE,   // the position, as number `a`
    PATTERN_BEGIN = LLAMACFFI_PATTERN_BEGIN,  // the text begins here
    PATTERN_END = LLAMACFFI_PATTERN_END,    // and ends here
    PATTERN_WORD = LLAMACFFI_PATTERN_WORD,   // a word begins or ends here
    PATTERN_INSIDE = LLAMACFFI_PATTERN_INSIDE, // neither
};

struct PatternStep {
    int32_t op, a, b;
};

// A regular expression as a program; the positions 2k and 2k + 1 are those of group k.
struct Pattern {
    std::vector<PatternStep> steps;
    std::vector<Range> ranges;
    int32_t n_saved;
};

// Searches for a pattern by following all ways to match at once, in order of preference.
class Search {
  public:
    explicit Search(const Pattern &pattern) : pattern(&pattern) {}

    void add(const char *text, size_t size);
    // Assumes that the text ends here.  Returns where the first nonempty group begins, or else the match;
    // -1 if there is no match.
    int64_t found();

  private:
    static constexpr int64_t NONE = -1;
    struct Threads {
        std::vector<int32_t> steps;
        std::vector<int64_t> saved; // of each thread, one after the other
        std::vector<char> has;      // by step: whether a thread is there
    };

    void character(uint32_t code, size_t size);
    bool close(const Threads &from, Threads &to, int64_t next);
    bool follow(int32_t step, std::vector<int64_t> &saved, Threads &to, int64_t next);
    bool holds(int32_t op, int64_t next) const;

    const Pattern *pattern;
    Threads pending; // before what needs no character
    std::vector<int64_t> match;
    int64_t position = 0;
    int64_t last = NONE; // the character before
    Utf8 partial;
    unsigned char bytes[4] = {0, 0, 0, 0};
    size_t n_bytes = 0;
};

} // namespace llamacffi
