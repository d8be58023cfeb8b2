// Whether cached keys can be shifted to other positions (rotated): tried out, since no backend tells.
// upstream: src/llama-kv-cache.cpp build_rope_shift: what llama.cpp computes to shift them, and the trial repeats.
// Without this file, llamacffi cannot check whether cached keys can be shifted.
#include "ggml-cpp.h"
#include "llama-context.h" // what rotary positions are computed with
#include "llama-model.h"   // the shapes of the layers
#include "llamacffi/k_shift.h"
#include "native.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Numbers = std::vector<float>;

// Two tokens, since a view of the keys of only one might happen to be contiguous.
constexpr int64_t N_CELLS = 2;
constexpr int32_t FROM = 3, BY = 2;
// Relative squared errors.  Single quantized values may be rounded to a neighbouring one.
constexpr double EXACT = 1e-6, ROUNDED = 1e-2;
constexpr size_t N_NODES = 32;

// The properties of a layer on which rotation depends.
struct Keys {
    int64_t n_rot, n_head_dim, n_head, start; // each head is rotated from dimension `start` on
    float base, scale;
    ggml_tensor *factors;
    ggml_backend_dev_t device;
    bool index; // keys of the indexer that selects tokens, not of the attention itself

    int64_t row() const { return n_head_dim * n_head; }
    bool operator==(const Keys &other) const {
        return n_rot == other.n_rot && n_head_dim == other.n_head_dim && n_head == other.n_head &&
               start == other.start && base == other.base && scale == other.scale &&
               factors == other.factors && device == other.device && index == other.index;
    }
};

template <typename Pointer> Pointer have(Pointer pointer, const char *what) {
    if (!pointer) {
        throw std::runtime_error(std::string("no ") + what);
    }
    return pointer;
}

double error(const Numbers &got, const Numbers &wanted) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        difference += (got[i] - wanted[i]) * static_cast<double>(got[i] - wanted[i]);
        size += wanted[i] * static_cast<double>(wanted[i]);
    }
    return difference / size;
}

// upstream: src/llama-kv-cache.cpp nrot, attn_rot_k: the size of the Hadamard matrix by which llama.cpp multiplies
// quantized keys is the largest power of two that divides the head size; 1 (none) if that is below 64.
int64_t mixed_width(int64_t n_head_dim) {
    const int64_t n = n_head_dim & -n_head_dim;
    return n < 64 ? 1 : n;
}

// Its own inverse.
void mix(Numbers &numbers, int64_t n) {
    for (size_t block = 0; block < numbers.size(); block += n) {
        float *x = numbers.data() + block;
        for (int64_t half = 1; half < n; half *= 2) {
            for (int64_t i = 0; i < n; ++i) {
                if (!(i & half)) {
                    const float a = x[i], b = x[i + half];
                    x[i] = a + b;
                    x[i + half] = a - b;
                }
            }
        }
        for (int64_t i = 0; i < n; ++i) {
            x[i] /= std::sqrt(static_cast<float>(n));
        }
    }
}

// A rotation with llama.cpp's parameters for the keys of a layer.
// upstream: src/llama-kv-cache.cpp LLAMA_ROPE_TYPE_MROPE, LLAMA_ROPE_TYPE_IMROPE: shifted as if they were NEOX.
template <typename Rope>
ggml_tensor *turn(Rope rope, ggml_context *ctx, ggml_tensor *x, ggml_tensor *by, const Keys &keys,
                  ggml_tensor *factors, const llama_context &context) {
    const llama_cparams &cparams = context.get_cparams();
    const int type = context.get_model().hparams.rope_type;
    const bool in_parts = type == LLAMA_ROPE_TYPE_MROPE || type == LLAMA_ROPE_TYPE_IMROPE;
    return rope(ctx, x, by, factors, keys.n_rot, in_parts ? LLAMA_ROPE_TYPE_NEOX : type,
                cparams.n_ctx_orig_yarn, keys.base, keys.scale, cparams.yarn_ext_factor,
                cparams.yarn_attn_factor, cparams.yarn_beta_fast, cparams.yarn_beta_slow);
}

// upstream: src/llama-kv-cache.cpp "attn_inp_k_rot": the name of that matrix.
bool mixes(const ggml_tensor *node) {
    return node->op == GGML_OP_MUL_MAT && !std::strcmp(node->src[0]->name, "attn_inp_k_rot");
}

// Whether an operation after RoPE preserves the angles.
bool keeps_angles(const ggml_tensor *node) {
    switch (node->op) {
    case GGML_OP_CONCAT:
    case GGML_OP_CONT:
    case GGML_OP_CPY:
    case GGML_OP_DUP:
    case GGML_OP_L2_NORM:
    case GGML_OP_PERMUTE:
    case GGML_OP_REPEAT:
    case GGML_OP_RESHAPE:
    case GGML_OP_RMS_NORM:
    case GGML_OP_SCALE:
    case GGML_OP_VIEW:
        return true;
    default:
        return mixes(node);
    }
}

// The node that matches `wanted` and from which the output of a node comes; null if none does.
template <typename Wanted> const ggml_tensor *origin(const ggml_tensor *node, const Wanted &wanted) {
    if (!node || wanted(node)) {
        return node;
    }
    const ggml_tensor *found = nullptr;
    for (int i = 0; keeps_angles(node) && i < GGML_MAX_SRC && !found; ++i) {
        found = origin(node->src[i], wanted);
    }
    return found;
}

// The layer whose keys a node writes to the cache; -1 for other nodes.
// upstream: src/llama-kv-cache.cpp "cache_%sk_l%d": the name of cached keys.
int layer_of_keys(const ggml_tensor *node) {
    const char *name = node->op == GGML_OP_SET_ROWS && node->view_src ? node->view_src->name : "";
    const char *end = std::strncmp(name, "cache_", 6) == 0 ? std::strstr(name, "k_l") : nullptr;
    return end ? std::atoi(end + 3) : -1;
}

class Trial {
  public:
    Trial(const llama_context &context, ggml_type type, bool mixes)
        : context(context), type(type), mixes(mixes),
          cpu(open(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU))) {}

    // Whether two rotations equal one by their sum: not so where each also scales.
    bool adds_up(const Keys &keys) const {
        const Numbers once = turned(keys, some(keys), FROM + BY);
        return error(turned(keys, turned(keys, some(keys), FROM), BY), once) < EXACT;
    }

    // Whether the device rotates keys of the cache's type as precisely as expected.
    bool turns(const Keys &keys) const {
        const std::vector<char> stored = packed(keys, turned(keys, some(keys), FROM));
        const Numbers wanted =
            unpacked(keys, packed(keys, turned(keys, unpacked(keys, stored), BY)));
        return error(unpacked(keys, turned_in_place(keys, stored)), wanted) < ROUNDED;
    }

    // Whether a node of the graph rotates like this, as far as its parameters matter.
    bool is_like(const Keys &keys, const ggml_tensor *node) const {
        Keys one = keys; // a head, turned from its beginning
        one.n_head_dim = one.n_rot = node->ne[0];
        one.n_head = 1;
        one.start = 0;
        const Numbers theirs = turned(one, some(one), FROM, [&](ggml_tensor *turn) {
            std::memcpy(turn->op_params, node->op_params, sizeof node->op_params);
        });
        one.n_rot = keys.n_rot;
        return error(turned(one, some(one), FROM), theirs) < EXACT;
    }

  private:
    const llama_context &context;
    const ggml_type type;
    const bool mixes;
    const ggml_backend_ptr cpu;

    // upstream: src/llama-kv-cache.cpp indexer_head_size: for an indexer, keys of any type are multiplied.
    bool mixed(const Keys &keys) const { return mixes && (keys.index || ggml_is_quantized(type)); }

    static ggml_backend_ptr open(ggml_backend_dev_t device) {
        ggml_backend_ptr backend(have(ggml_backend_dev_init(device, nullptr), "backend"));
        const auto set = reinterpret_cast<ggml_backend_set_n_threads_t>(
            ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device),
                                              "ggml_backend_set_n_threads"));
        if (set) {
            // upstream: ggml/src/ggml-cpu/ggml-cpu.c ggml_graph_compute_secondary_thread: an assertion that fails
            // on another thread ends the process.
            set(backend.get(), 1);
        }
        return backend;
    }

    static ggml_context_ptr context_of(size_t n_bytes, bool no_alloc) {
        const size_t size = n_bytes + N_NODES * ggml_tensor_overhead() +
                            ggml_graph_overhead_custom(N_NODES, false);
        return ggml_context_ptr(have(ggml_init({size, nullptr, no_alloc}), "memory"));
    }

    static Numbers some(const Keys &keys) {
        Numbers numbers(keys.row() * N_CELLS);
        uint32_t state = 1;
        for (float &number : numbers) {
            state = state * 1664525 + 1013904223;
            number = static_cast<float>(state >> 8) / (1 << 23) - 1;
        }
        return numbers;
    }

    static ggml_tensor *view(ggml_context *ctx, ggml_tensor *rows, const Keys &keys) {
        return ggml_view_3d(ctx, rows, keys.n_rot, keys.n_head, N_CELLS,
                            ggml_row_size(rows->type, keys.n_head_dim), rows->nb[1],
                            ggml_row_size(rows->type, keys.start));
    }

    static void fill(ggml_tensor *tensor, int32_t value) {
        const std::vector<int32_t> values(ggml_nelements(tensor), value);
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    }

    // In full precision, on the CPU.
    Numbers turned(const Keys &keys, Numbers rows, int32_t by,
                   const std::function<void(ggml_tensor *)> &change = nullptr) const {
        const size_t n_bytes = rows.size() * sizeof(float);
        ggml_context_ptr ctx = context_of(n_bytes + keys.n_rot * sizeof(float) + 1024, false);
        ggml_tensor *x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, keys.row(), N_CELLS);
        ggml_tensor *positions = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, N_CELLS);
        ggml_tensor *factors = nullptr;
        if (keys.factors) {
            factors = ggml_dup_tensor(ctx.get(), keys.factors);
            ggml_backend_tensor_get(keys.factors, factors->data, 0, ggml_nbytes(factors));
        }
        std::memcpy(x->data, rows.data(), n_bytes);
        for (int64_t i = 0; i < N_CELLS; ++i) {
            static_cast<int32_t *>(positions->data)[i] = by;
        }
        ggml_cgraph *graph = ggml_new_graph_custom(ctx.get(), N_NODES, false);
        ggml_tensor *result = turn(ggml_rope_ext_inplace, ctx.get(), view(ctx.get(), x, keys),
                                   positions, keys, factors, context);
        if (change) {
            change(result);
        }
        ggml_build_forward_expand(graph, result);
        if (ggml_backend_graph_compute(cpu.get(), graph) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("the CPU backend cannot compute it");
        }
        std::memcpy(rows.data(), x->data, n_bytes);
        return rows;
    }

    std::vector<char> packed(const Keys &keys, Numbers rows) const {
        if (mixed(keys)) {
            mix(rows, mixed_width(keys.n_head_dim));
        }
        std::vector<char> bytes(ggml_row_size(type, keys.row()) * N_CELLS);
        ggml_quantize_chunk(type, rows.data(), bytes.data(), 0, N_CELLS, keys.row(), nullptr);
        return bytes;
    }

    Numbers unpacked(const Keys &keys, const std::vector<char> &bytes) const {
        Numbers rows(keys.row() * N_CELLS);
        if (type == GGML_TYPE_F32) {
            std::memcpy(rows.data(), bytes.data(), bytes.size());
        } else {
            ggml_get_type_traits(type)->to_float(bytes.data(), rows.data(),
                                                 static_cast<int64_t>(rows.size()));
        }
        if (mixed(keys)) {
            mix(rows, mixed_width(keys.n_head_dim));
        }
        return rows;
    }

    static ggml_tensor *product(ggml_context *ctx, ggml_tensor *matrix, ggml_tensor *x) {
        const int64_t n = matrix->ne[0];
        ggml_tensor *rows = ggml_reshape_2d(ctx, x, n, ggml_nelements(x) / n);
        return ggml_reshape(ctx, ggml_mul_mat(ctx, matrix, rows), x);
    }

    // upstream: src/llama-kv-cache.cpp llama_mul_mat_hadamard: the operations of a shift, and these are the same.
    ggml_tensor *plan(ggml_context *ctx, ggml_tensor *x, ggml_tensor *by, ggml_tensor *matrix,
                      const Keys &keys) const {
        if (!ggml_is_quantized(type)) {
            return turn(ggml_rope_ext_inplace, ctx, x, by, keys, keys.factors, context);
        }
        ggml_tensor *plain = ggml_cast(ctx, x, GGML_TYPE_F32);
        if (matrix) {
            plain = product(ctx, matrix, plain);
        }
        plain = turn(ggml_rope_ext, ctx, plain, by, keys, keys.factors, context);
        if (matrix) {
            plain = product(ctx, matrix, plain);
        }
        return ggml_cpy(ctx, plain, x);
    }

    std::vector<char> turned_in_place(const Keys &keys, std::vector<char> stored) const {
        const ggml_backend_ptr device = open(keys.device);
        ggml_context_ptr cache = context_of(0, true), ctx = context_of(0, true);
        ggml_tensor *rows = ggml_new_tensor_2d(cache.get(), type, keys.row(), N_CELLS);
        const ggml_backend_buffer_ptr buffer(have(
            ggml_backend_alloc_ctx_tensors_from_buft(cache.get(),
                                                     ggml_backend_dev_buffer_type(keys.device)),
            "buffer"));
        ggml_backend_tensor_set(rows, stored.data(), 0, stored.size());

        ggml_tensor *by = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, N_CELLS), *matrix = nullptr;
        ggml_set_input(by);
        const int64_t n = mixed_width(keys.n_head_dim);
        if (mixed(keys) && ggml_is_quantized(type)) {
            matrix = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n, n);
            ggml_set_input(matrix);
        }
        ggml_cgraph *graph = ggml_new_graph_custom(ctx.get(), N_NODES, false);
        ggml_build_forward_expand(
            graph, plan(ctx.get(), view(ctx.get(), rows, keys), by, matrix, keys));

        ggml_backend_t backends[] = {device.get(), cpu.get()};
        const bool alone = ggml_backend_dev_type(keys.device) == GGML_BACKEND_DEVICE_TYPE_CPU;
        const ggml_backend_sched_ptr sched(ggml_backend_sched_new(
            backends, nullptr, alone ? 1 : 2, N_NODES, /* parallel = */ false, /* op_offload = */ false));
        if (!ggml_backend_sched_alloc_graph(sched.get(), graph)) {
            throw std::runtime_error("not enough memory for a trial");
        }
        fill(by, BY);
        if (matrix) {
            Numbers unit(n * n);
            for (int64_t i = 0; i < n; ++i) {
                unit[i * n + i] = 1;
            }
            mix(unit, n);
            ggml_backend_tensor_set(matrix, unit.data(), 0, ggml_nbytes(matrix));
        }
        if (ggml_backend_sched_graph_compute(sched.get(), graph) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("the device cannot compute it");
        }
        ggml_backend_tensor_get(rows, stored.data(), 0, stored.size());
        return stored;
    }
};

Keys keys_of(const llama_context &context, uint32_t il, bool index, bool offload) {
    const llama_model &model = context.get_model();
    const llama_hparams &hparams = model.hparams;
    const llama_cparams &cparams = context.get_cparams();
    const int64_t n_rot = hparams.n_rot(il);
    const int64_t n_head_dim = index ? hparams.indexer_head_size : hparams.n_embd_head_k(il);
    return {
        n_rot,
        n_head_dim,
        index ? 1 : hparams.n_head_kv(il),
        hparams.n_lora_kv > 0 ? n_head_dim - n_rot : 0,
        model.get_rope_freq_base(cparams, il),
        model.get_rope_freq_scale(cparams, il),
        model.get_rope_factors(cparams, il),
        offload ? model.dev_layer(il) : ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU),
        index,
    };
}

std::vector<Keys> layers_of(const llama_context &context, bool offload) {
    const llama_hparams &hparams = context.get_model().hparams;
    std::vector<Keys> found;
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        for (const bool index : {false, true}) {
            if (!hparams.has_kv(il) || !hparams.has_rope(il)) {
                continue;
            }
            const Keys keys = keys_of(context, il, index, offload);
            const bool known = std::find(found.begin(), found.end(), keys) != found.end();
            if (!known && keys.n_rot > 0 && keys.row() > 0) {
                found.push_back(keys);
            }
        }
    }
    return found;
}

// Whether llama.cpp shifts the keys of a layer with the same rotation as a node of the graph.
bool turns_like(const llama_context &context, uint32_t il, const ggml_tensor *node) {
    const Keys keys = keys_of(context, il, false, false);
    if (keys.n_rot <= 0 || keys.n_rot > node->ne[0] || node->src[2] != keys.factors) {
        return false;
    }
    return Trial(context, GGML_TYPE_F32, false).is_like(keys, node);
}

} // namespace

void llamacffi::look_at_keys(const llama_context &context, ggml_cgraph *graph,
                             llamacffi_graph &found) {
    const llama_hparams &hparams = context.get_model().hparams;
    found.turns_all = found.mixes_all = true;
    const bool divided = hparams.swa_type != LLAMA_SWA_TYPE_NONE; // sliding-window layers have a cache of their own
    bool turns_full = false, turns_sliding = false, any = false;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor *node = ggml_graph_node(graph, i);
        const int il = layer_of_keys(node);
        if (il < 0 || static_cast<uint32_t>(il) >= hparams.n_layer_all) {
            continue;
        }
        any = true;
        (divided && hparams.is_swa(il) ? turns_sliding : turns_full) |= hparams.has_rope(il);
        const bool mixed = origin(node->src[0], mixes);
        found.mixes_some = found.mixes_some || mixed;
        found.mixes_all = found.mixes_all && mixed;
        const ggml_tensor *turn =
            origin(node->src[0], [](const ggml_tensor *one) { return one->op == GGML_OP_ROPE; });
        const bool alike = hparams.has_rope(il) ? turn && turns_like(context, il, turn) : !turn;
        // upstream: src/llama-kv-cache.cpp LLAMA_ROPE_TYPE_NONE: without RoPE, it rotates nothing.
        found.turns_all &= alike || hparams.rope_type == LLAMA_ROPE_TYPE_NONE;
    }
    found.turns_each = !any || (turns_full && (turns_sliding || !divided));
}

int32_t llamacffi_try_k_shift(const llama_context *context, int32_t type, bool offload,
                              const llamacffi_graph *graph, char *reason, size_t size) {
    reason[0] = '\0';
    try {
        if (context->get_model().hparams.rope_type == LLAMA_ROPE_TYPE_NONE) {
            return LLAMACFFI_K_SHIFT_WORKS; // there is nothing to do
        }
        if (!graph->turns_all) {
            return LLAMACFFI_K_SHIFT_OTHER_KEYS;
        }
        if (!graph->turns_each) {
            return LLAMACFFI_K_SHIFT_NO_LAYER;
        }
        if (ggml_is_quantized(static_cast<ggml_type>(type)) && !graph->mixes_all) {
            std::snprintf(reason, size, "it would multiply them by a Hadamard matrix for another head size");
            return LLAMACFFI_K_SHIFT_FAILS; // the matrix does not exist
        }
        const Trial trial(*context, static_cast<ggml_type>(type), graph->mixes_some);
        for (const Keys &keys : layers_of(*context, offload)) {
            if (!trial.adds_up(keys)) {
                return LLAMACFFI_K_SHIFT_SCALES;
            }
            // upstream: ggml/src/ggml-backend-meta.cpp GGML_BACKEND_DEVICE_TYPE_META: a device that splits tensors
            // across others only computes the graphs of a context.
            const bool split = ggml_backend_dev_type(keys.device) == GGML_BACKEND_DEVICE_TYPE_META;
            if (!split && !trial.turns(keys)) {
                std::snprintf(reason, size, "a trial gave a wrong result");
                return LLAMACFFI_K_SHIFT_FAILS;
            }
        }
        return LLAMACFFI_K_SHIFT_WORKS;
    } catch (const std::exception &error) {
        std::snprintf(reason, size, "%s", error.what());
        return LLAMACFFI_K_SHIFT_FAILS;
    }
}

int32_t llamacffi_model_head_unit(const llama_model *model, bool values) {
    uint32_t unit = 0;
    for (uint32_t il = 0; il < model->hparams.n_layer_all; ++il) {
        if (model->hparams.has_kv(il)) {
            unit = std::gcd(unit, values ? model->hparams.n_embd_head_v(il)
                                         : model->hparams.n_embd_head_k(il));
        }
    }
    return static_cast<int32_t>(unit);
}
