/* Included before ggml's code for AMX (cmake/llama.cpp.cmake), which describes its tiles in 64 bytes on
 * the stack and loads them with _tile_loadconfig().  GCC's own (12, and others) says that this reads a
 * pointer, 8 bytes, so that the optimizer leaves out the stores to the rest, and the processor refuses
 * what is there: each matrix product with quantized weights would be a segmentation fault. */
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%0" ::"m"(*reinterpret_cast<const char(*)[64]>(config)))
#endif
