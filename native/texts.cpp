#include "texts.hpp"

#include <algorithm>

namespace llamacffi {

namespace {

// Beyond all characters: the second of a pair that stands for any.
constexpr uint32_t any = 0x110000;

uint64_t key_of(uint32_t first, uint32_t second) { return (uint64_t(first) << 21 | second) + 1; }

size_t slot_of(uint64_t key, size_t size) {
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> 32) & (size - 1);
}

} // namespace

Character character_at(std::string_view text, size_t i) {
    const auto byte = [&](size_t at) -> uint32_t {
        return at < text.size() ? static_cast<unsigned char>(text[at]) : 0x80;
    };
    const uint32_t first = byte(i);
    if (first < 0xC0) {
        return {first, 1}; // ASCII; in what is not UTF-8 anything
    }
    const size_t size = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    uint32_t code = first & (0x7Fu >> size);
    for (size_t n = 1; n < size; ++n) {
        code = code << 6 | (byte(i + n) & 0x3F);
    }
    return {code, std::min(size, text.size() - i)};
}

Character character_before(std::string_view text, size_t i) {
    do {
        --i;
    } while (i > 0 && !begins_character(text[i]));
    return character_at(text, i);
}

void TextSet::add(std::string_view text, uint8_t flags) {
    if (!text.empty()) {
        entries.push_back({std::string(text), flags});
    }
}

void TextSet::finish() {
    std::sort(entries.begin(), entries.end(), [](const Entry &a, const Entry &b) { return a.text < b.text; });
    std::vector<Entry> unique;
    for (Entry &one : entries) {
        if (!unique.empty() && unique.back().text == one.text) {
            unique.back().flags |= one.flags;
        } else {
            unique.push_back(std::move(one));
        }
    }
    entries = std::move(unique);
    size_t i = 0;
    for (size_t byte = 0; byte < 256; ++byte) {
        begins[byte] = i;
        while (i < entries.size() && static_cast<unsigned char>(entries[i].text[0]) == byte) {
            ++i;
        }
    }
    begins[256] = i;
}

void TextSet::narrow(size_t &low, size_t &high, size_t depth, char byte) const {
    const auto next = [&](const Entry &one) { return static_cast<unsigned char>(one.text[depth]); };
    const auto wanted = static_cast<unsigned char>(byte);
    const auto first = entries.begin() + static_cast<std::ptrdiff_t>(low);
    const auto last = entries.begin() + static_cast<std::ptrdiff_t>(high);
    const auto from = std::partition_point(first, last, [&](const Entry &one) { return next(one) < wanted; });
    const auto to = std::partition_point(from, last, [&](const Entry &one) { return next(one) <= wanted; });
    low = static_cast<size_t>(from - entries.begin());
    high = static_cast<size_t>(to - entries.begin());
}

void PairSet::add(std::string_view text) {
    if (text.empty()) {
        return;
    }
    Character one = character_at(text, 0);
    for (size_t i = one.size; i < text.size();) {
        const Character next = character_at(text, i);
        insert(key_of(one.code, next.code));
        insert(key_of(one.code, any));
        i += next.size;
        one = next;
    }
}

bool PairSet::has(uint32_t first, uint32_t second) const { return contains(key_of(first, second)); }
bool PairSet::begins(uint32_t first) const { return contains(key_of(first, any)); }

bool PairSet::contains(uint64_t key) const {
    for (size_t i = slot_of(key, slots.size()); slots[i]; i = (i + 1) & (slots.size() - 1)) {
        if (slots[i] == key) {
            return true;
        }
    }
    return false;
}

void PairSet::insert(uint64_t key) {
    size_t i = slot_of(key, slots.size());
    for (; slots[i]; i = (i + 1) & (slots.size() - 1)) {
        if (slots[i] == key) {
            return;
        }
    }
    slots[i] = key;
    if (++used * 2 < slots.size()) {
        return;
    }
    std::vector<uint64_t> old(slots.size() * 2);
    old.swap(slots);
    used = 0;
    for (const uint64_t one : old) {
        if (one) {
            insert(one);
        }
    }
}

} // namespace llamacffi
