# The generator: headers -> C for the module, Python for the package.

set(LLAMACFFI_GENERATED "${CMAKE_BINARY_DIR}/generated")
if(SKBUILD_STATE STREQUAL "editable")
  set(LLAMACFFI_PACKAGE "${CMAKE_SOURCE_DIR}/llamacffi") # where type checkers look
else()
  set(LLAMACFFI_PACKAGE "${CMAKE_BINARY_DIR}/package")
endif()

file(GLOB LLAMACFFI_GENERATOR CONFIGURE_DEPENDS
  ffigen/*.py headers/*.h headers/*.toml headers/libc/*.h headers/templates/*.j2
  "${LLAMA_CPP}/include/*.h" "${LLAMA_CPP}/ggml/include/*.h" "${LLAMA_CPP}/tools/mtmd/mtmd*.h")

# The command writes a file only if its text changed, so what it left alone is not compiled again.
add_custom_command(
  OUTPUT "${LLAMACFFI_GENERATED}/_llama.c" "${LLAMACFFI_GENERATED}/guards.cpp"
  COMMAND "${CMAKE_COMMAND}" -E env "CC=${CMAKE_C_COMPILER}"
    "${Python_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/build_ffi.py" generate
    --llama-cpp "${LLAMA_CPP}" --out "${LLAMACFFI_GENERATED}" --package "${LLAMACFFI_PACKAGE}"
  DEPENDS build_ffi.py ${LLAMACFFI_GENERATOR}
  COMMENT "Generating the binding from llama.cpp's headers"
  VERBATIM)
