// Files of Python as C's.
#include "llamacffi/files.h"

#include <cerrno>
#include <cstdio>

#include <unistd.h>

FILE *llamacffi_file_open(int32_t descriptor, int64_t offset, bool writable) {
    const int copy = dup(descriptor);
    if (copy < 0) {
        return nullptr;
    }
    FILE *file = fdopen(copy, writable ? "r+b" : "rb");
    if (!file) {
        const int error = errno;
        close(copy);
        errno = error;
        return nullptr;
    }
    if (fseeko(file, offset, SEEK_SET) != 0) {
        const int error = errno;
        std::fclose(file);
        errno = error;
        return nullptr;
    }
    return file;
}

int32_t llamacffi_file_close(FILE *file) { return !file || std::fclose(file) == 0 ? 0 : -1; }
