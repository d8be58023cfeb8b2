// What only the graph of a context shows.
#include "ggml.h"
#include "guard.hpp"
#include "llama-ext.h" // llama_graph_reserve: exported, but not in llama.h yet
#include "llamacffi.h"
#include "native.hpp"

#include <cstring>
#include <stdexcept>

namespace {

bool is_called(const ggml_tensor *tensor, const char *name) {
    return std::strcmp(tensor->name, name) == 0;
}

// Of the outputs, only the hidden states could be as wide as the vocabulary by chance.  Not each
// architecture gives its logits their usual name.
bool is_logits(const ggml_tensor *node, int64_t n_vocab) {
    const bool wide = (node->flags & GGML_TENSOR_FLAG_OUTPUT) && node->ne[0] == n_vocab;
    return is_called(node, "result_output") ||
           (wide && !is_called(node, "result_norm") && !is_called(node, "result_embd"));
}

// A table of learned positions is read by the positions of the batch.
bool reads_positions(const ggml_tensor *node) {
    return node->op == GGML_OP_GET_ROWS && is_called(node->src[1], "inp_pos");
}

llamacffi_graph describe(ggml_cgraph *graph, int64_t n_vocab) {
    llamacffi_graph found = {};
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor *node = ggml_graph_node(graph, i);
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

} // namespace

void llamacffi_graph_describe(llama_context *context, uint32_t n_tokens, uint32_t n_seqs,
                              uint32_t n_outputs, llamacffi_graph *graph) {
    try {
        llamacffi::Enter enter;
        const llama_vocab *vocab = llama_model_get_vocab(llama_get_model(context));
        ggml_cgraph *reserved = llama_graph_reserve(context, n_tokens, n_seqs, n_outputs);
        if (!reserved) {
            throw std::runtime_error("no memory for the graph");
        }
        *graph = describe(reserved, llama_vocab_n_tokens(vocab));
#ifndef LLAMACFFI_WITHOUT_TURNING
        llamacffi::look_at_keys(*context, reserved, *graph);
#endif
    } catch (const std::exception &error) {
        llamacffi::set_failure("llamacffi_graph_describe", error.what());
    }
}
