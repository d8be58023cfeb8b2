// The devices and tensors of a model, which llama.h does not expose.
// Without this file, llamacffi cannot list the devices and tensors of a model.
#include "ggml-backend-impl.h" // whether a buffer can be read
#include "llama-ext.h"   // the devices: exported, but not in llama.h yet
#include "llama-model.h" // the tensors: exported, for upstream's own tests
#include "llamacffi/model.h"

#include <regex>

int32_t llamacffi_model_n_devices(const llama_model *model) { return llama_model_n_devices(model); }

ggml_backend_dev_t llamacffi_model_device(const llama_model *model, int32_t i) {
    return llama_model_get_device(model, i);
}

int32_t llamacffi_model_n_tensors(const llama_model *model) {
    return static_cast<int32_t>(llama_internal_get_tensor_map(model).size());
}

const ggml_tensor *llamacffi_model_tensor(const llama_model *model, int32_t i) {
    const auto &tensors = llama_internal_get_tensor_map(model);
    return i >= 0 && static_cast<size_t>(i) < tensors.size() ? tensors[i].second : nullptr;
}

bool llamacffi_tensor_readable(const ggml_tensor *tensor) {
    const ggml_backend_buffer *buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
    return buffer && tensor->data && buffer->iface.get_tensor;
}

void llamacffi_check_regex(const char *pattern) {
    std::regex compiled(pattern);
}
