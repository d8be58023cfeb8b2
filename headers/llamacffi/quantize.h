/* Quantization that reports progress and can be stopped. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef LLAMACFFI_WITHOUT_QUANTIZE
/* Called with each piece of text that is logged at the level INFO; returns false to stop the call. */
typedef bool (*llamacffi_message_callback)(const char *text, void *user_data);

/* llama_model_quantize(), which logs each tensor and can be stopped between two of them. */
uint32_t llamacffi_quantize(const char *source, const char *target,
                            const struct llama_model_quantize_params *params,
                            llamacffi_message_callback on_message, void *user_data);

/* The enum ggml_type of most tensors in a file of this enum llama_ftype; GGML_TYPE_COUNT if it is not a
 * type to quantize to. */
int32_t llamacffi_ftype_type(int32_t ftype);
#endif /* LLAMACFFI_WITHOUT_QUANTIZE */

#ifdef __cplusplus
}
#endif
