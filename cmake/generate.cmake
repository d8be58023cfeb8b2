# The generator: headers -> C for the module, Python for the package.

set(LLAMACFFI_GENERATED "${CMAKE_BINARY_DIR}/generated")
if(SKBUILD_STATE STREQUAL "editable")
  set(LLAMACFFI_PACKAGE "${CMAKE_SOURCE_DIR}/llamacffi") # where type checkers look
else()
  set(LLAMACFFI_PACKAGE "${CMAKE_BINARY_DIR}/package")
endif()

file(GLOB LLAMACFFI_GENERATOR CONFIGURE_DEPENDS
  ffigen/*.py headers/*.h headers/llamacffi/*.h headers/*.toml headers/libc/*.h headers/templates/*.j2
  "${LLAMA_CPP}/include/*.h" "${LLAMA_CPP}/ggml/include/*.h" "${LLAMA_CPP}/tools/mtmd/mtmd*.h")

# The command writes a file only if its text changed, so what it left alone is not compiled again.
add_custom_command(
  OUTPUT "${LLAMACFFI_GENERATED}/_llama.c" "${LLAMACFFI_GENERATED}/guards.cpp"
    "${LLAMACFFI_GENERATED}/has.h" "${LLAMACFFI_GENERATED}/llamacffi.h"
  COMMAND "${CMAKE_COMMAND}" -E env "CC=${CMAKE_C_COMPILER}"
    "${Python_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/build_ffi.py" generate
    --llama-cpp "${LLAMA_CPP}" --out "${LLAMACFFI_GENERATED}" --package "${LLAMACFFI_PACKAGE}"
    ${LLAMACFFI_WITHOUT_OPTIONS}
  DEPENDS build_ffi.py ${LLAMACFFI_GENERATOR}
  COMMENT "Generating the binding from llama.cpp's headers"
  VERBATIM)

# The facts of the API, to be compared with those of other libraries, and their hash for the module.
set(LLAMACFFI_PROBE_COMPILER "${CMAKE_C_COMPILER}")
if(CMAKE_CROSSCOMPILING)
  set(LLAMACFFI_PROBE_COMPILER cc) # what it compiles is run here; all 64-bit machines have one layout
endif()
add_custom_command(
  OUTPUT "${LLAMACFFI_GENERATED}/api.lock" "${LLAMACFFI_GENERATED}/layout.h"
  COMMAND "${CMAKE_COMMAND}" -E env "CC=${LLAMACFFI_PROBE_COMPILER}"
    "${Python_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/build_ffi.py" lock --llama-cpp "${LLAMA_CPP}"
    --commit "${LLAMA_BUILD_COMMIT}" --out "${LLAMACFFI_GENERATED}/api.lock"
    --hash "${LLAMACFFI_GENERATED}/layout.h"
  DEPENDS build_ffi.py llamacffi/_native/layout.py ${LLAMACFFI_GENERATOR}
  COMMENT "Measuring llama.cpp's API"
  VERBATIM)
