# For other libraries (llamacffi/_native/interop.py): llama.cpp's public headers and a CMake package, beside the
# libraries.  Both find their way from where they lie, so that the package can be moved.

# A tree that lacks one does without.
file(GLOB LLAMACFFI_PUBLIC_HEADERS
  "${LLAMA_CPP}/include/*.h" "${LLAMA_CPP}/ggml/include/*.h"
  "${LLAMA_CPP}/tools/mtmd/mtmd.h" "${LLAMA_CPP}/tools/mtmd/mtmd-helper.h")

include(CMakePackageConfigHelpers)
set(LLAMACFFI_INTEROP "${CMAKE_BINARY_DIR}/interop")
configure_file(cmake/llamacffi-build.h.in "${LLAMACFFI_INTEROP}/llamacffi-build.h" @ONLY)
configure_file(cmake/llamacffi-config.cmake.in "${LLAMACFFI_INTEROP}/llamacffi-config.cmake" @ONLY)
write_basic_package_version_file("${LLAMACFFI_INTEROP}/llamacffi-config-version.cmake"
  VERSION "${SKBUILD_PROJECT_VERSION}" COMPATIBILITY SameMinorVersion)

install(FILES ${LLAMACFFI_PUBLIC_HEADERS} "${LLAMACFFI_GENERATED}/llamacffi.h"
  "${LLAMACFFI_INTEROP}/llamacffi-build.h" DESTINATION llamacffi/include COMPONENT llamacffi)
install(DIRECTORY headers/llamacffi DESTINATION llamacffi/include COMPONENT llamacffi)
# For CFFI modules that include our types: all headers that declare them.
install(FILES cmake/llamacffi-all.h DESTINATION llamacffi/include COMPONENT llamacffi)
install(FILES headers/upstream.h DESTINATION llamacffi/include RENAME llamacffi-upstream.h
  COMPONENT llamacffi)
install(FILES "${LLAMACFFI_INTEROP}/llamacffi-config.cmake"
  "${LLAMACFFI_INTEROP}/llamacffi-config-version.cmake"
  DESTINATION llamacffi/cmake COMPONENT llamacffi)
