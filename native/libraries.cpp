// The libraries of llama.cpp in this process, and what they were built from.
#include "has.h" // generated
#include "llamacffi/libraries.h"

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"
#include "upstream.h" // mtmd.h, if there is one

#include <cstdio>

#include <dlfcn.h>

// Weak references, as in the guard, since a library of another version may lack any function.
extern "C" {
decltype(llama_backend_free) llama_backend_free __attribute__((weak));
decltype(ggml_backend_load_all) ggml_backend_load_all __attribute__((weak));
decltype(ggml_free) ggml_free __attribute__((weak));
#if LLAMACFFI_HAS_mtmd_free
decltype(mtmd_free) mtmd_free __attribute__((weak));
#endif
}

namespace {

// Finds a symbol that a library itself defines, ignoring its dependencies.
void *own_symbol(void *handle, const void *base, const char *name) {
    Dl_info info;
    void *found = dlsym(handle, name);
    return found && dladdr(found, &info) && info.dli_fbase == base ? found : nullptr;
}

const char *call(void *function) {
    return function ? reinterpret_cast<const char *(*)()>(function)() : nullptr;
}

// `inside` describes any address in the library.
void describe(void *handle, const Dl_info &inside, llamacffi_library_info *info) {
    info->path = inside.dli_fname;
    info->commit = static_cast<const char *>(own_symbol(handle, inside.dli_fbase, "llamacffi_stamp"));
    // These may also come from the libraries that it uses.
    info->ggml_commit = call(dlsym(handle, "ggml_commit"));
    info->ggml_version = call(dlsym(handle, "ggml_version"));
    info->llama_version = call(own_symbol(handle, inside.dli_fbase, "llama_version"));
}

} // namespace

bool llamacffi_library(int32_t i, llamacffi_library_info *info) {
    static const struct {
        const char *name;
        void *inside;
    } libraries[] = {
        {"ggml-base", reinterpret_cast<void *>(&ggml_free)},
        {"ggml", reinterpret_cast<void *>(&ggml_backend_load_all)},
        {"llama", reinterpret_cast<void *>(&llama_backend_free)},
#if LLAMACFFI_HAS_mtmd_free
        {"mtmd", reinterpret_cast<void *>(&mtmd_free)},
#endif
    };
    if (i < 0 || static_cast<size_t>(i) >= sizeof libraries / sizeof *libraries) {
        return false;
    }
    Dl_info inside;
    *info = {};
    info->name = libraries[i].name;
    if (!libraries[i].inside || !dladdr(libraries[i].inside, &inside)) {
        return true;
    }
    if (void *handle = dlopen(inside.dli_fname, RTLD_NOLOAD | RTLD_LAZY)) {
        describe(handle, inside, info);
        dlclose(handle); // it stays loaded, since this module needs it
    } else {
        info->path = inside.dli_fname;
    }
    return true;
}

void *llamacffi_library_open(const char *path, llamacffi_library_info *info, char *error, size_t size) {
    *info = {};
    // upstream: ggml/src/ggml-backend-dl.cpp RTLD_NOW, RTLD_LOCAL: ggml opens backends so.
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        const char *reason = dlerror();
        std::snprintf(error, size, "%s", reason ? reason : "the loader gives no reason");
        return nullptr;
    }
    Dl_info inside;
    for (const char *symbol : {"llamacffi_stamp", "ggml_backend_init", "ggml_backend_score"}) {
        void *found = dlsym(handle, symbol);
        if (found && dladdr(found, &inside)) {
            describe(handle, inside, info);
            break;
        }
    }
    return handle;
}

void llamacffi_library_close(void *handle) { dlclose(handle); }
