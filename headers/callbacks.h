/* Python functions that C calls: cffi compiles a trampoline for each (llamacffi/_callbacks.py). */

/* llama_model_params.progress_callback; user_data is a Bridge handle, valid during the load. */
extern "Python" bool llamacffi_on_progress(float progress, void *user_data);
