/* Linked into each library of llama.cpp: the commit that it was built from, and by whom.  The macro
 * comes from CMake. */
extern const char llamacffi_stamp[];

__attribute__((visibility("default"))) const char llamacffi_stamp[] = LLAMACFFI_BUILT_COMMIT;
