/* The devices and tensors of a model, which llama.h does not expose. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef LLAMACFFI_WITHOUT_MODEL
/* The devices that llama.cpp has chosen for a model; NULL past the last one. */
int32_t llamacffi_model_n_devices(const struct llama_model *model);
struct ggml_backend_device *llamacffi_model_device(const struct llama_model *model, int32_t i);

/* The tensors of a model, valid as long as it is; NULL past the last one.  A tensor that is used in two
 * places may be listed twice. */
int32_t llamacffi_model_n_tensors(const struct llama_model *model);
const struct ggml_tensor *llamacffi_model_tensor(const struct llama_model *model, int32_t i);

/* Whether the data of a tensor can be read back: some buffers store it in a layout of their own. */
bool llamacffi_tensor_readable(const struct ggml_tensor *tensor);

/* Fail unless this is a regular expression as llama.cpp uses them to match the names of tensors. */
void llamacffi_check_regex(const char *pattern);
#endif /* LLAMACFFI_WITHOUT_MODEL */

#ifdef __cplusplus
}
#endif
