/* Stand-in: cffi knows FILE. */
#pragma once
#include <stddef.h>
typedef struct llamacffi_file FILE;
