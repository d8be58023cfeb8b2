// The sorted texts of a vocabulary's tokens.  See grammar.hpp.
#include "grammar.hpp"

#include <algorithm>
#include <cstring>

namespace llamacffi {

namespace {

std::string piece_of(const llama_vocab *vocab, llama_token id) {
    std::string text(16, '\0');
    int32_t n = llama_token_to_piece(vocab, id, text.data(), static_cast<int32_t>(text.size()), 0, true);
    if (n < 0) {
        text.resize(static_cast<size_t>(-n));
        n = llama_token_to_piece(vocab, id, text.data(), -n, 0, true);
    }
    text.resize(static_cast<size_t>(std::max(n, 0)));
    return text;
}

} // namespace

Pieces::Pieces(const llama_vocab *vocab) {
    const int32_t n = llama_vocab_n_tokens(vocab);
    sorted.reserve(n);
    for (llama_token id = 0; id < n; ++id) {
        const std::string text = piece_of(vocab, id);
        sorted.push_back({bytes.size(), text.size(), id, 0});
        ends.push_back(llama_vocab_is_eog(vocab, id) ? 1 : 0);
        bytes += text;
    }
    const auto less = [this](const Piece &one, const Piece &other) {
        const int order = std::memcmp(text(one), text(other), std::min(one.size, other.size));
        return order ? order < 0 : one.size != other.size ? one.size < other.size : one.id < other.id;
    };
    std::sort(sorted.begin(), sorted.end(), less);
    place.resize(n);
    for (size_t i = 0; i < sorted.size(); ++i) {
        place[sorted[i].id] = static_cast<uint32_t>(i);
        if (i > 0) {
            const Piece &before = sorted[i - 1];
            const size_t size = std::min(before.size, sorted[i].size);
            const char *one = text(before), *other = text(sorted[i]);
            sorted[i].shared = static_cast<uint32_t>(std::mismatch(one, one + size, other).first - one);
        }
    }
}

} // namespace llamacffi
