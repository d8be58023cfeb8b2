// The graph of a context, which llama.h does not expose.
// Without this file, llamacffi cannot inspect the graph of a context.
#include "ggml-backend.h"
#include "ggml.h"
#include "llama-ext.h"    // llama_graph_reserve: exported, but not in llama.h yet
#include "llama-memory.h" // of which kind a memory is
#include "llamacffi/graph.h"
#include "native.hpp"
#include "reserve.hpp"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <typeinfo>

namespace {

bool is_called(const ggml_tensor *tensor, const char *name) {
    return std::strcmp(tensor->name, name) == 0;
}

// Among the outputs, only the hidden states might happen to be as wide as the vocabulary.
// upstream: src/llama-graph.h t_logits: a result of the graph whose tensor not every architecture names alike.
bool is_logits(const ggml_tensor *node, int64_t n_vocab) {
    const bool wide = (node->flags & GGML_TENSOR_FLAG_OUTPUT) && node->ne[0] == n_vocab;
    return is_called(node, "result_output") ||
           (wide && !is_called(node, "result_norm") && !is_called(node, "result_embd"));
}

// Learned position embeddings are looked up by the positions of the batch.
// upstream: src/llama-graph.cpp "inp_pos": the name of the positions.
bool reads_positions(const ggml_tensor *node) {
    return node->op == GGML_OP_GET_ROWS && is_called(node->src[1], "inp_pos");
}

// upstream: src/llama-kv-cache.cpp "cache_%sk_l%d": the name of cached keys.
bool reads_keys(const ggml_tensor *node) {
    for (const ggml_tensor *source : node->src) {
        const ggml_tensor *whole = source && source->view_src ? source->view_src : source;
        if (whole && std::strncmp(whole->name, "cache_", 6) == 0 && std::strstr(whole->name, "k_l")) {
            return true;
        }
    }
    return false;
}

int32_t integer(const ggml_tensor *node, int i) { return node->op_params[i]; }

float number(const ggml_tensor *node, int i) {
    float value;
    std::memcpy(&value, node->op_params + i, sizeof(value));
    return value;
}

// Describes the first node that the CPU backend cannot compute; empty if it can compute all.
// upstream: ggml/src/ggml-cpu/ops.cpp "GGML_ASSERT(eps >= 0.0f)": asserts some of what is checked here while it
// computes, on threads where a failure ends the process, and computes nonsense with the rest.
class Problem {
  public:
    explicit Problem(char (&text)[256]) : text(text) {}

    void check(const ggml_tensor *node) {
        switch (node->op) {
        case GGML_OP_NORM:
        case GGML_OP_RMS_NORM:
        case GGML_OP_L2_NORM:
            check_epsilon(node, number(node, 0));
            break;
        case GGML_OP_GROUP_NORM:
            check_epsilon(node, number(node, 1));
            if (integer(node, 0) < 1 || integer(node, 0) > node->ne[2]) {
                say(node, "normalizes %lld channels in %d groups: the number of groups must be from 1 to the number of channels",
                    (long long)node->ne[2], integer(node, 0));
            }
            break;
        case GGML_OP_ROPE:
            check_rope(node);
            break;
        case GGML_OP_SCALE:
            check_finite(node, number(node, 0), "a scale");
            break;
        case GGML_OP_SOFT_MAX:
        case GGML_OP_FLASH_ATTN_EXT:
            check_finite(node, number(node, 0), "a scale");
            check_finite(node, number(node, 1), "an ALiBi bias");
            break;
        default:
            break;
        }
        check_types(node);
    }

  private:
    template <typename... Values> void say(const ggml_tensor *node, const char *format, Values... values) {
        if (text[0]) {
            return;
        }
        const int n = std::snprintf(text, sizeof(text), "in its graph, %s (%s) ", node->name, ggml_op_name(node->op));
        std::snprintf(text + n, sizeof(text) - n, format, values...);
    }

    void check_epsilon(const ggml_tensor *node, float epsilon) {
        if (!(epsilon >= 0) || std::isinf(epsilon)) {
            say(node, "normalizes with an epsilon of %g, which must be at least 0", epsilon);
        }
    }

    void check_finite(const ggml_tensor *node, float value, const char *what) {
        if (!std::isfinite(value)) {
            say(node, "computes with %s of %g, which must be finite", what, value);
        }
    }

    // upstream: ggml/src/ggml-cpu/ops.cpp ggml_compute_forward_rope_flt: loops forever with no dimension to rotate.
    void check_rope(const ggml_tensor *node) {
        const int n_dims = integer(node, 1), first = integer(node, 15);
        const bool vision = integer(node, 2) == GGML_ROPE_TYPE_VISION;
        if (n_dims < 2 || n_dims % 2 || n_dims > node->ne[0] - first || (vision && n_dims != node->ne[0] / 2)) {
            say(node, "rotates %d of %lld dimensions: this must be an even number from 2 up to all of them", n_dims,
                (long long)node->ne[0]);
        }
        const bool sections = integer(node, 2) & GGML_ROPE_TYPE_MROPE;
        if (sections && integer(node, 11) <= 0 && integer(node, 12) <= 0 && integer(node, 13) <= 0) {
            say(node, "rotates by positions in sections, but the size of every section is 0");
        }
        if (!(number(node, 5) > 0) || std::isinf(number(node, 5))) {
            say(node, "rotates with a base frequency of %g, which must be above 0", number(node, 5));
        }
        for (int i : {6, 7, 8, 9, 10}) {
            check_finite(node, number(node, i), "a parameter of its frequencies");
        }
        const ggml_tensor *factors = node->src[2];
        if (factors && (factors->type != GGML_TYPE_F32 || factors->ne[0] < n_dims / 2)) {
            say(node, "rotates %d dimensions with %lld factors of type %s: it needs %d of type f32", n_dims,
                (long long)factors->ne[0], ggml_type_name(factors->type), n_dims / 2);
        }
    }

    // upstream: ggml/src/ggml-cpu/binary-ops.cpp "unsupported types": if the first operand of an elementwise operation
    // is f32, the second must be, too.
    void check_types(const ggml_tensor *node) {
        const bool elements = node->op == GGML_OP_ADD || node->op == GGML_OP_MUL || node->op == GGML_OP_SUB ||
                              node->op == GGML_OP_DIV;
        if (!elements || node->src[0]->type != GGML_TYPE_F32 || node->src[1]->type == GGML_TYPE_F32) {
            return;
        }
        const ggml_backend_buffer_t buffer = node->src[1]->buffer;
        if (buffer && ggml_backend_buffer_is_host(buffer)) {
            say(node, "reads %s, which is %s: the CPU backend needs f32 here", node->src[1]->name,
                ggml_type_name(node->src[1]->type));
        }
    }

    char (&text)[256];
};

llamacffi_graph describe(ggml_cgraph *graph, int64_t n_vocab) {
    llamacffi_graph found = {};
    Problem problem(found.problem);
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor *node = ggml_graph_node(graph, i);
        problem.check(node);
        if (is_called(node, "result_embd_pooled")) {
            found.n_pooled = node->ne[0];
        } else if (is_logits(node, n_vocab)) {
            found.has_logits = true;
        } else if (reads_positions(node)) {
            found.n_positions = node->src[0]->ne[1];
        }
    }
    return found;
}

// upstream: src/llama-graph.cpp build_inp_mem_hybrid: a memory for attention and recurrent states creates inputs for
// attention, and setting them fails if no node reads them.
void check_hybrid(llama_context *context, ggml_cgraph *graph, char (&problem)[256]) {
    const llama_memory_t memory = llama_get_memory(context);
    if (problem[0] || !memory || !std::strstr(typeid(*memory).name(), "memory_hybrid")) {
        return;
    }
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        if (reads_keys(ggml_graph_node(graph, i))) {
            return;
        }
    }
    std::snprintf(problem, sizeof(problem), "the model is hybrid, but none of its layers has attention");
}

} // namespace

void llamacffi_graph_describe(llama_context *context, uint32_t n_tokens, uint32_t n_seqs,
                              uint32_t n_outputs, llamacffi_graph *graph) {
    llamacffi::ReserveLock lock;
    const llama_vocab *vocab = llama_model_get_vocab(llama_get_model(context));
    ggml_cgraph *reserved = llama_graph_reserve(context, n_tokens, n_seqs, n_outputs);
    if (!reserved) {
        throw std::runtime_error("not enough memory for the graph");
    }
    *graph = describe(reserved, llama_vocab_n_tokens(vocab));
    check_hybrid(context, reserved, graph->problem);
#ifndef LLAMACFFI_WITHOUT_K_SHIFT
    if (!graph->problem[0]) {
        llamacffi::look_at_keys(*context, reserved, *graph);
    }
#endif
}
