# The parts of native/ that are over llama.cpp's C++.  Each compiles with the pinned llama.cpp, or the build
# fails; those that do not compile with another one are left out, and what they do is UnsupportedError.

set(LLAMACFFI_WITHOUT "")
if(NOT LLAMACFFI_PINNED)
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env "CC=${CMAKE_C_COMPILER}" "CXX=${CMAKE_CXX_COMPILER}"
      "${Python_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/build_ffi.py" parts --llama-cpp "${LLAMA_CPP}"
    OUTPUT_VARIABLE LLAMACFFI_WITHOUT
    COMMAND_ERROR_IS_FATAL ANY)
endif()
set(LLAMACFFI_PARTS graph model pending quantize room turning)
list(REMOVE_ITEM LLAMACFFI_PARTS ${LLAMACFFI_WITHOUT})
list(TRANSFORM LLAMACFFI_PARTS REPLACE "(.+)" "native/\\1.cpp")
list(TRANSFORM LLAMACFFI_WITHOUT REPLACE "(.+)" "--without=\\1" OUTPUT_VARIABLE LLAMACFFI_WITHOUT_OPTIONS)
list(TRANSFORM LLAMACFFI_WITHOUT TOUPPER OUTPUT_VARIABLE LLAMACFFI_WITHOUT_MACROS)
list(TRANSFORM LLAMACFFI_WITHOUT_MACROS PREPEND "LLAMACFFI_WITHOUT_")
