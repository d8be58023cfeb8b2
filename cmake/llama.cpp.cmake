# llama.cpp from LLAMA_CPP, as shared libraries with backends that are loaded at run time.
#
# Every option of llama.cpp's own CMake can be given (CMAKE_ARGS, or -C cmake.define.X=Y); what is set
# here as a default gives way to it.

set(BUILD_SHARED_LIBS ON)
set(CMAKE_PLATFORM_NO_VERSIONED_SONAME ON) # a wheel has no symbolic links
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(GGML_BACKEND_DL ON)
# upstream: ggml/src/ggml-cpu/ggml-cpu.c "#pragma omp barrier": OpenMP's threads spin, and starve the other
# threads of the process.
option(GGML_OPENMP "" OFF)
option(GGML_CPU_ALL_VARIANTS "" OFF)
option(GGML_RPC "" ON) # one small library, idle until a server is named
option(LLAMA_OPENSSL "" OFF)

# upstream: ggml/src/ggml-cpu/CMakeLists.txt GGML_NATIVE, GGML_BACKEND_DL: it refuses both together, since the
# score by which a backend is chosen does not know the features then.  A build for this machine has one CPU
# backend and needs no score, so the flag is given below, to that backend alone.
if(GGML_CPU_ALL_VARIANTS OR CMAKE_CROSSCOMPILING)
  option(GGML_NATIVE "" OFF)
else()
  option(GGML_NATIVE "" ON)
endif()
set(LLAMACFFI_NATIVE ${GGML_NATIVE})
if(LLAMACFFI_NATIVE)
  foreach(feature SSE42 AVX AVX2 BMI2 FMA F16C)
    set(GGML_${feature} OFF)
  endforeach()
endif()
set(GGML_NATIVE OFF)

foreach(part TESTS TOOLS EXAMPLES SERVER APP)
  set(LLAMA_BUILD_${part} OFF)
endforeach()
set(LLAMA_BUILD_COMMON ON) # configured for the reference programs of the tests, not built by default
set(LLAMA_BUILD_MTMD ON)

# upstream: ggml/CMakeLists.txt GIT_EXE: asks git for the commit.  But the commit is the pin's, since the git
# repository around the tree is not llama.cpp's.
set(GIT_EXE "" CACHE FILEPATH "ggml asks git for the commit unless this is empty" FORCE)
set(LLAMA_BUILD_NUMBER 0)

# C++ exceptions pass through C frames on their way to the guard.
add_compile_options($<$<COMPILE_LANGUAGE:C>:-fexceptions>)
# Messages of failed assertions name files: relative to the tree, not to the machine of the build.
# (Some compiler launchers make the path relative to the build directory first.)
file(RELATIVE_PATH LLAMACFFI_FROM_BUILD "${CMAKE_BINARY_DIR}" "${LLAMA_CPP}")
add_compile_options(
  "-fmacro-prefix-map=${LLAMA_CPP}/=" "-fmacro-prefix-map=${LLAMACFFI_FROM_BUILD}/=")
set(CMAKE_INSTALL_RPATH "$<IF:$<PLATFORM_ID:Darwin>,@loader_path,$ORIGIN>")
if(NOT APPLE)
  add_link_options(LINKER:--disable-new-dtags) # what is in $ORIGIN comes before LD_LIBRARY_PATH
endif()

add_subdirectory("${LLAMA_CPP}" llama.cpp EXCLUDE_FROM_ALL)
if(NOT TARGET mtmd AND EXISTS "${LLAMA_CPP}/tools/mtmd/mtmd.h") # one of the tools, before it was a library that can be built alone
  get_directory_property(LLAMA_INSTALL_VERSION DIRECTORY "${LLAMA_CPP}" DEFINITION LLAMA_INSTALL_VERSION)
  add_subdirectory("${LLAMA_CPP}/tools/mtmd" llama.cpp/tools/mtmd EXCLUDE_FROM_ALL)
endif()

if(LLAMACFFI_NATIVE AND TARGET ggml-cpu AND NOT MSVC)
  target_compile_options(ggml-cpu PRIVATE -march=native)
endif()

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set_source_files_properties("${LLAMA_CPP}/ggml/src/ggml-cpu/amx/mmq.cpp"
    DIRECTORY "${LLAMA_CPP}/ggml/src" PROPERTIES
    COMPILE_OPTIONS "-include;${CMAKE_CURRENT_SOURCE_DIR}/native/tile_config.h")
endif()

get_directory_property(LLAMACFFI_LLAMA_VERSION DIRECTORY "${LLAMA_CPP}" DEFINITION LLAMA_VERSION)
get_directory_property(LLAMACFFI_GGML_VERSION DIRECTORY "${LLAMA_CPP}/ggml" DEFINITION GGML_VERSION)

# What the package ships.
set(LLAMACFFI_CORE llama ggml ggml-base)
if(TARGET mtmd)
  list(APPEND LLAMACFFI_CORE mtmd)
endif()
set(LLAMACFFI_LIBRARIES ${LLAMACFFI_CORE})
foreach(backend ${GGML_AVAILABLE_BACKENDS})
  if(TARGET ${backend})
    list(APPEND LLAMACFFI_LIBRARIES ${backend})
  endif()
endforeach()

# Each has its commit in it, to be compared when it is loaded: only libggml-base has a function for that.
add_library(llamacffi-stamp OBJECT EXCLUDE_FROM_ALL native/stamp.c)
target_compile_definitions(llamacffi-stamp PRIVATE LLAMACFFI_BUILT_COMMIT="${LLAMA_BUILD_COMMIT}")
foreach(library ${LLAMACFFI_LIBRARIES})
  target_sources(${library} PRIVATE $<TARGET_OBJECTS:llamacffi-stamp>)
endforeach()

# The programs that the tests compare with: `cmake --build DIR --target llamacffi-reference`.  A tree
# without one of them, as a source distribution of a build alone may be, does without it.
set(LLAMACFFI_REFERENCE "")
foreach(tool completion gguf-split imatrix quantize results)
  if(EXISTS "${LLAMA_CPP}/tools/${tool}/CMakeLists.txt")
    add_subdirectory("${LLAMA_CPP}/tools/${tool}" llama.cpp/tools/${tool} EXCLUDE_FROM_ALL)
    list(APPEND LLAMACFFI_REFERENCE llama-${tool})
  endif()
endforeach()
# This one writes a small random model of each architecture.
if(TARGET llama-common AND EXISTS "${LLAMA_CPP}/tests/test-llama-archs.cpp")
  add_executable(test-llama-archs EXCLUDE_FROM_ALL "${LLAMA_CPP}/tests/test-llama-archs.cpp"
    tests/reference/load_backends.cpp)
  target_link_libraries(test-llama-archs PRIVATE llama-common)
  list(APPEND LLAMACFFI_REFERENCE test-llama-archs)
endif()
if(LLAMACFFI_REFERENCE)
  # A program looks for backends in its own directory.
  set_target_properties(${LLAMACFFI_REFERENCE} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin")
  add_custom_target(llamacffi-reference DEPENDS ${LLAMACFFI_REFERENCE})
endif()
