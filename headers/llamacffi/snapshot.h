/* Whether there is enough memory for a snapshot. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef LLAMACFFI_WITHOUT_SNAPSHOT
/* What a snapshot of a sequence copies: bytes in main memory and on other devices, and the number of
 * tensors that they are in. */
struct llamacffi_snapshot {
    uint64_t n_host;
    uint64_t n_device;
    uint64_t n_tensors;
};

/* Measure what llama_state_seq_get_data_ext() would copy with LLAMA_STATE_SEQ_FLAGS_ON_DEVICE. */
void llamacffi_snapshot_size(struct llama_context *context, int32_t seq_id, uint32_t flags,
                             struct llamacffi_snapshot *snapshot);

/* An upper bound, in bytes, of the memory that llama.cpp needs to list the copies of `n_tensors`. */
size_t llamacffi_snapshot_description(uint64_t n_tensors);

/* Try to allocate the memory for a snapshot, and free it again: for its list of copies, and with `data`
 * also for the copies.  llama.cpp would end the process if there were not enough. */
bool llamacffi_snapshot_fits(struct llama_context *context, int32_t seq_id, uint32_t flags,
                             bool data);
#endif /* LLAMACFFI_WITHOUT_SNAPSHOT */

#ifdef __cplusplus
}
#endif
