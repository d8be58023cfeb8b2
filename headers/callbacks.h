/* Python functions that C calls.  CFFI compiles a trampoline for each (llamacffi/_core/callbacks.py). */

/* llama_model_params.progress_callback; user_data is a Bridge handle, valid during the load. */
extern "Python" bool llamacffi_on_progress(float progress, void *user_data);

/* llama_model_set_tensor_data_t; user_data is a Bridge handle, valid during the load. */
extern "Python" void llamacffi_on_tensor_data(struct ggml_tensor *tensor, void *user_data);

/* llama_context_params.cb_eval; user_data is a Bridge handle, valid as long as the context. */
extern "Python" bool llamacffi_on_eval(struct ggml_tensor *tensor, bool ask, void *user_data);

/* The llama_sampler_i of a sampler written in Python.  Its `ctx` is a handle that the owner of the chain
 * keeps, so that nothing needs to be freed. */
extern "Python" const char *llamacffi_on_sampler_name(const struct llama_sampler *sampler);
extern "Python" void llamacffi_on_sampler_accept(struct llama_sampler *sampler, int32_t token);
extern "Python" void llamacffi_on_sampler_apply(struct llama_sampler *sampler,
                                                struct llama_token_data_array *candidates);
extern "Python" void llamacffi_on_sampler_reset(struct llama_sampler *sampler);
extern "Python" struct llama_sampler *llamacffi_on_sampler_clone(const struct llama_sampler *sampler);

/* The callback of llamacffi_quantize(); user_data is a Bridge handle, valid during the call. */
extern "Python" bool llamacffi_on_quantize(const char *text, void *user_data);
