// Sets of token texts and of character pairs, for tokenizing text in pieces.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llamacffi {

inline bool begins_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

inline size_t count_characters(std::string_view text) {
    return static_cast<size_t>(std::count_if(text.begin(), text.end(), begins_character));
}

// The character that begins at `i`, in a text that is UTF-8, and how many bytes it has.
struct Character {
    uint32_t code;
    size_t size;
};
Character character_at(std::string_view text, size_t i);

// The one that ends before `i`.
Character character_before(std::string_view text, size_t i);

// A set of texts with flags, to be found within another text.
class TextSet {
  public:
    void add(std::string_view text, uint8_t flags);
    void finish(); // after the last

    // Calls `found(size, flags, number)` for each text of the set at position `i`, shortest first.
    template <typename Found> void at(std::string_view text, size_t i, const Found &found) const {
        const unsigned char first = static_cast<unsigned char>(text[i]);
        size_t low = begins[first], high = begins[first + 1];
        for (size_t depth = 1; low < high; ++depth) {
            if (entries[low].text.size() == depth) {
                found(depth, entries[low].flags, low);
                ++low;
            }
            if (i + depth >= text.size()) {
                return;
            }
            narrow(low, high, depth, text[i + depth]);
        }
    }

  private:
    struct Entry {
        std::string text;
        uint8_t flags;
    };

    // Narrows the range to the texts whose next byte is this one.
    void narrow(size_t &low, size_t &high, size_t depth, char byte) const;

    std::vector<Entry> entries; // sorted
    std::array<size_t, 257> begins{};
};

// The pairs of adjacent characters in a set of texts.
class PairSet {
  public:
    void add(std::string_view text);
    bool has(uint32_t first, uint32_t second) const;
    bool begins(uint32_t first) const; // whether any pair begins with it

  private:
    void insert(uint64_t key);
    bool contains(uint64_t key) const;

    std::vector<uint64_t> slots = std::vector<uint64_t>(1024); // open addressing; 0 is free
    size_t used = 0;
};

} // namespace llamacffi
