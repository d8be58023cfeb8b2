// What this module was built from.  CMakeLists.txt defines the other LLAMACFFI_BUILT_* macros.
#include "llamacffi/build.h"

#include "has.h"    // generated: LLAMACFFI_MISSING
#include "layout.h" // generated: LLAMACFFI_BUILT_LAYOUT

const char *llamacffi_built_commit(void) { return LLAMACFFI_BUILT_COMMIT; }
const char *llamacffi_built_llama_version(void) { return LLAMACFFI_BUILT_LLAMA_VERSION; }
const char *llamacffi_built_ggml_version(void) { return LLAMACFFI_BUILT_GGML_VERSION; }
const char *llamacffi_built_version(void) { return LLAMACFFI_BUILT_VERSION; }
const char *llamacffi_built_layout(void) { return LLAMACFFI_BUILT_LAYOUT; }

bool llamacffi_missing(int32_t i, llamacffi_missing_name *missing) {
    static const llamacffi_missing_name all[] = {LLAMACFFI_MISSING}; // ends with an empty entry
    const int32_t n = sizeof all / sizeof *all - 1;
    if (i < 0 || i >= n) {
        return false;
    }
    *missing = all[i];
    return true;
}
