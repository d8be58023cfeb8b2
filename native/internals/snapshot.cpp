// Whether there is enough memory for what llama.cpp allocates where a failure would end the process.
// Without this file, llamacffi cannot check whether there is room for a snapshot.
#include "ggml-cpp.h"
#include "llama-io.h"     // how a memory is written
#include "llama-memory.h" // its functions are virtual
#include "llamacffi/snapshot.h"

#include <cstdlib>
#include <map>
#include <memory>
#include <vector>

namespace {

// Counts what a snapshot would copy.
// upstream: src/llama-context.cpp llama_io_write_device, llama_io_write_host: copy in their destructors, which cannot
// report a failed allocation.
class Counter : public llama_io_write_i {
  public:
    struct Buffer {
        size_t n_tensors = 0, n_bytes = 0;
    };
    std::map<ggml_backend_buffer_type_t, Buffer> buffers;

    void write(const void *, size_t size) override { n_written += size; }
    void write_tensor(ggml_tensor *tensor, size_t, size_t size) override {
        Buffer &buffer = buffers[ggml_backend_buffer_get_type(tensor->buffer)];
        ++buffer.n_tensors;
        buffer.n_bytes += size;
    }
    size_t n_bytes() override { return n_written; }

  private:
    size_t n_written = 0;
};

bool fits(const Counter &counter, bool data) {
    std::vector<ggml_backend_buffer_ptr> buffers;
    std::vector<std::unique_ptr<void, decltype(&std::free)>> blocks;
    for (const auto &[type, buffer] : counter.buffers) {
        blocks.emplace_back(std::malloc(llamacffi_snapshot_description(buffer.n_tensors)), &std::free);
        if (!blocks.back()) {
            return false;
        }
        if (data) {
            const size_t padding = buffer.n_tensors * ggml_backend_buft_get_alignment(type);
            buffers.emplace_back(ggml_backend_buft_alloc_buffer(type, buffer.n_bytes + padding));
            if (!buffers.back()) {
                return false;
            }
        }
    }
    return true;
}

} // namespace

// upstream: src/llama-context.cpp winfos: each tensor is padded and listed several times.
size_t llamacffi_snapshot_description(uint64_t n_tensors) {
    return n_tensors * (2 * ggml_tensor_overhead() + 512) + (size_t{4} << 20);
}

void llamacffi_snapshot_size(llama_context *context, int32_t seq_id, uint32_t flags,
                             llamacffi_snapshot *snapshot) {
    Counter counter;
    llama_get_memory(context)->state_write(counter, seq_id, flags);
    *snapshot = {};
    for (const auto &[type, buffer] : counter.buffers) {
        (ggml_backend_buft_is_host(type) ? snapshot->n_host : snapshot->n_device) += buffer.n_bytes;
        snapshot->n_tensors += buffer.n_tensors;
    }
}

bool llamacffi_snapshot_fits(llama_context *context, int32_t seq_id, uint32_t flags, bool data) {
    Counter counter;
    llama_get_memory(context)->state_write(counter, seq_id, flags);
    return fits(counter, data);
}
