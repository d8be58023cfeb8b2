// See pattern.hpp.
#include "pattern.hpp"

#include <algorithm>

namespace llamacffi {

namespace {

constexpr uint32_t LAST = 0x10FFFF;
constexpr uint32_t NO_CHARACTER = LAST + 1; // a byte that is none stands for this and its value

bool is_word(int64_t code) {
    return (code >= '0' && code <= '9') || (code >= 'A' && code <= 'Z') || code == '_' ||
           (code >= 'a' && code <= 'z');
}

} // namespace

Utf8::Result Utf8::add(unsigned char byte) {
    if (missing) {
        if ((byte & 0xC0) != 0x80) {
            return WRONG;
        }
        value = value << 6 | (byte & 0x3F);
        --missing;
    } else if (byte < 0x80) {
        *this = {byte, 0, 0};
    } else if (byte >= 0xC2 && byte < 0xE0) {
        *this = {byte & 0x1Fu, 1, 0x80};
    } else if (byte >= 0xE0 && byte < 0xF0) {
        *this = {byte & 0x0Fu, 2, 0x800};
    } else if (byte >= 0xF0 && byte < 0xF5) {
        *this = {byte & 0x07u, 3, 0x10000};
    } else {
        return WRONG;
    }
    const bool surrogates = low() >= 0xD800 && high() <= 0xDFFF;
    if (low() > high() || surrogates) {
        return WRONG;
    }
    return missing ? MORE : CHARACTER;
}

uint32_t Utf8::low() const { return std::max(least, value << (6 * missing)); }

uint32_t Utf8::high() const {
    const uint32_t most = (value << (6 * missing)) | ((1u << (6 * missing)) - 1);
    return std::min(most, LAST);
}

void Search::add(const char *text, size_t size) {
    for (size_t i = 0; i < size; ++i) {
        const auto byte = static_cast<unsigned char>(text[i]);
        Utf8::Result result = partial.add(byte);
        if (result == Utf8::WRONG) {
            for (size_t k = 0; k < n_bytes; ++k) {
                character(NO_CHARACTER + bytes[k], 1);
            }
            n_bytes = 0;
            partial = Utf8();
            result = partial.add(byte);
        }
        if (result == Utf8::MORE) {
            bytes[n_bytes++] = byte;
            continue;
        }
        const bool whole = result == Utf8::CHARACTER;
        character(whole ? partial.value : NO_CHARACTER + byte, n_bytes + 1);
        n_bytes = 0;
        partial = Utf8();
    }
}

// Whether the assertion holds between the last character and `next`, NONE at the end.
bool Search::holds(int32_t op, int64_t next) const {
    switch (op) {
    case PATTERN_BEGIN: return position == 0;
    case PATTERN_END:   return next == NONE;
    default:            return (is_word(last) != is_word(next)) == (op == PATTERN_WORD);
    }
}

// Follows a thread to where it needs a character.  Returns whether it has matched; what is less
// preferred does not matter then.
bool Search::follow(int32_t step, std::vector<int64_t> &saved, Threads &to, int64_t next) {
    struct Task {
        int32_t step;
        int32_t restore; // else: put back what was saved under this number
        int64_t position;
    };
    std::vector<Task> tasks = {{step, -1, 0}};
    while (!tasks.empty()) {
        const Task task = tasks.back();
        tasks.pop_back();
        if (task.restore >= 0) {
            saved[task.restore] = task.position;
            continue;
        }
        if (to.has[task.step]) {
            continue;
        }
        to.has[task.step] = 1;
        const PatternStep &one = pattern->steps[task.step];
        switch (one.op) {
        case PATTERN_MATCH: match = saved; return true;
        case PATTERN_SET:
            to.steps.push_back(task.step);
            to.saved.insert(to.saved.end(), saved.begin(), saved.end());
            break;
        case PATTERN_JUMP: tasks.push_back({one.a, -1, 0}); break;
        case PATTERN_SPLIT:
            tasks.push_back({one.b, -1, 0});
            tasks.push_back({one.a, -1, 0});
            break;
        case PATTERN_SAVE:
            tasks.push_back({-1, one.a, saved[one.a]});
            saved[one.a] = position;
            tasks.push_back({task.step + 1, -1, 0});
            break;
        default:
            if (holds(one.op, next)) {
                tasks.push_back({task.step + 1, -1, 0});
            }
        }
    }
    return false;
}

// Follows all threads, and one that begins here.  Returns whether one has matched.
bool Search::close(const Threads &from, Threads &to, int64_t next) {
    const size_t n = pattern->n_saved;
    to.has.assign(pattern->steps.size(), 0);
    std::vector<int64_t> saved(n);
    for (size_t k = 0; k < from.steps.size(); ++k) {
        std::copy_n(from.saved.begin() + k * n, n, saved.begin());
        if (follow(from.steps[k], saved, to, next)) {
            return true;
        }
    }
    if (match.empty()) {
        saved.assign(n, NONE);
        return follow(0, saved, to, next);
    }
    return false;
}

void Search::character(uint32_t code, size_t size) {
    Threads closed, after;
    close(pending, closed, code);
    position += size;
    const size_t n = pattern->n_saved;
    for (size_t k = 0; k < closed.steps.size(); ++k) {
        const PatternStep &one = pattern->steps[closed.steps[k]];
        const Range *first = pattern->ranges.data() + one.a, *end = first + one.b;
        const Range *range =
            std::lower_bound(first, end, code, [](const Range &r, uint32_t c) { return r.high < c; });
        if (range != end && range->low <= code) {
            after.steps.push_back(closed.steps[k] + 1);
            const auto from = closed.saved.begin() + k * n;
            after.saved.insert(after.saved.end(), from, from + n);
        }
    }
    pending = std::move(after);
    last = code;
}

int64_t Search::found() {
    Threads closed;
    close(pending, closed, NONE);
    if (match.empty()) {
        return NONE;
    }
    for (size_t k = 2; k + 1 < match.size(); k += 2) {
        if (match[k] >= 0 && match[k + 1] > match[k]) {
            return match[k];
        }
    }
    return match[0];
}

} // namespace llamacffi
