# The parts of native/ that use llama.cpp's C++, in native/internals/.  All must compile with the pinned
# llama.cpp.  Of another one, those that do not compile are left out, and using them raises UnsupportedError.

set(LLAMACFFI_WITHOUT "")
if(NOT LLAMACFFI_PINNED)
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -E env "CC=${CMAKE_C_COMPILER}" "CXX=${CMAKE_CXX_COMPILER}"
      "${Python_EXECUTABLE}" "${CMAKE_SOURCE_DIR}/build_ffi.py" parts --llama-cpp "${LLAMA_CPP}"
    OUTPUT_VARIABLE LLAMACFFI_WITHOUT
    COMMAND_ERROR_IS_FATAL ANY)
endif()
file(GLOB LLAMACFFI_PARTS CONFIGURE_DEPENDS native/internals/*.cpp)
foreach(part ${LLAMACFFI_WITHOUT})
  list(REMOVE_ITEM LLAMACFFI_PARTS "${CMAKE_SOURCE_DIR}/native/internals/${part}.cpp")
endforeach()
list(TRANSFORM LLAMACFFI_WITHOUT REPLACE "(.+)" "--without=\\1" OUTPUT_VARIABLE LLAMACFFI_WITHOUT_OPTIONS)
list(TRANSFORM LLAMACFFI_WITHOUT TOUPPER OUTPUT_VARIABLE LLAMACFFI_WITHOUT_MACROS)
list(TRANSFORM LLAMACFFI_WITHOUT_MACROS PREPEND "LLAMACFFI_WITHOUT_")
