/* llamacffi's own C API: what the package needs and llama.cpp's headers do not have.
 *
 * A part that is over llama.cpp's C++ may not compile against another llama.cpp than the pinned one.  Then
 * its macro LLAMACFFI_WITHOUT_* is defined, and the binding is built without it (headers/surface.toml). */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The llama.cpp that this module was compiled from. */
const char *llamacffi_built_commit(void);
const char *llamacffi_built_llama_version(void);
const char *llamacffi_built_ggml_version(void);

/* The version of llamacffi that it belongs to, and two hashes: of the facts of llama.cpp's API, which
 * are in lib/api.lock, and of the declarations that the Python in _generated was made from. */
const char *llamacffi_built_version(void);
const char *llamacffi_built_layout(void);
const char *llamacffi_built_cdef(void);

/* A name of the pinned llama.cpp that this one lacks, or has otherwise. */
struct llamacffi_missing_name {
    const char *name;
    const char *reason;
};

/* Tell them one by one.  Returns false for an `i` that there is not. */
bool llamacffi_missing(int32_t i, struct llamacffi_missing_name *missing);

/* A library of llama.cpp, as it is loaded.  What it does not tell is NULL. */
struct llamacffi_library_info {
    const char *name;          /* such as "llama" */
    const char *path;          /* of its file */
    const char *commit;        /* that llamacffi built it from; NULL if it is somebody else's */
    const char *ggml_commit;   /* what it, or the ggml that it uses, says: ggml_commit(), */
    const char *ggml_version;  /* ggml_version(), */
    const char *llama_version; /* llama_version() */
};

/* Describe the libraries that this module uses, in the order in which they need each other.  Returns
 * false for an `i` that there is not. */
bool llamacffi_library(int32_t i, struct llamacffi_library_info *info);

/* Load any other library, and describe it without its name.  Returns a handle that keeps it loaded; NULL
 * if it cannot be loaded, and then the reason is in `error`. */
void *llamacffi_library_open(const char *path, struct llamacffi_library_info *info, char *error,
                             size_t size);
void llamacffi_library_close(void *handle);

/* Route the log of llama, ggml and mtmd into the ring below, and failed assertions into the guard.
 * For the whole process; called once, at import. */
void llamacffi_install(void);

/* How many calls run that Python's threads have made, without this one. */
int32_t llamacffi_n_calls(void);

/* Forget those of other threads: a forked process has none. */
void llamacffi_forget_calls(void);

/* If calls still run when the process exits, end it there and then, with its exit status: they use what
 * would be destroyed next.  Nothing if the C library does not tell the status. */
void llamacffi_guard_exit(void);

/* The number of lines logged so far, over all threads. */
uint64_t llamacffi_log_count(void);

/* The same; and the next failure of the calling thread begins there. */
uint64_t llamacffi_log_checkpoint(void);

/* What that returned last in the calling thread; 0 at first. */
uint64_t llamacffi_log_since(void);

/* A number for the calling thread, which no other thread of the process gets, not even a later one. */
int32_t llamacffi_log_thread(void);

/* Where a line came from. */
struct llamacffi_log_info {
    int32_t level;  /* enum ggml_log_level */
    int32_t thread; /* llamacffi_log_thread() of the thread that logged it */
    double time;    /* when it began, in seconds since 1970 */
};

/* Copy line `number` (from 0), without its newline and without a terminating zero.
 * Returns its length in bytes, even if more than `size`; -1 if the ring has forgotten it, or if
 * there is no such line yet. */
int32_t llamacffi_log_line(uint64_t number, struct llamacffi_log_info *info, char *text, size_t size);

/* Lines below this enum ggml_log_level are dropped where they are logged; at first none. */
void llamacffi_log_set_level(int32_t level);
int32_t llamacffi_log_get_level(void);

/* How many lines the ring remembers. */
#define LLAMACFFI_LOG_CAPACITY 2048

/* Tells a running computation to stop.  Memory of the caller, zero at first. */
struct llamacffi_abort_flag {
    int32_t requested;
};

/* Raise or lower the flag; any thread may, at any time. */
void llamacffi_abort_set(struct llamacffi_abort_flag *flag, bool requested);

/* The ggml_abort_callback to go with it; `flag` is a struct llamacffi_abort_flag. */
bool llamacffi_abort_requested(void *flag);

/* Do what llama.cpp's functions of nearly these names do, but never two at once, and not while a context
 * plans the memory of its graphs: then it looks at the list of the model's adapters, without a lock. */
struct llama_context *llamacffi_context_new(struct llama_model *model,
                                            const struct llama_context_params *params);
struct llama_adapter_lora *llamacffi_adapter_load(struct llama_model *model, FILE *file);
void llamacffi_adapter_free(struct llama_adapter_lora *adapter);

/* Let nobody do that, for a fork; and again, in the parent and in the child.  All are for the thread
 * that forks. */
void llamacffi_planning_stop(void);
void llamacffi_planning_go_on(void);
void llamacffi_planning_begin(void);

/* Open the file behind a descriptor a second time, at `offset` from its beginning.  The two share the
 * position in it; closing one leaves the other open.  Returns NULL and sets errno on failure. */
FILE *llamacffi_file_open(int32_t descriptor, int64_t offset, bool writable);

/* Start so many threads at once, and end them.  Returns how many the system has started. */
int32_t llamacffi_threads_fit(int32_t n);

/* Close what llamacffi_file_open() opened.  Returns 0, or -1 and sets errno. */
int32_t llamacffi_file_close(FILE *file);

/* What the graph of a context shows, and no function of llama.h tells. */
struct llamacffi_graph {
    bool has_logits;     /* it computes logits: the getter returns a pointer even where it does not */
    int64_t n_pooled;    /* the width of the pooled embedding of a sequence; 0 if it pools none */
    int64_t n_positions; /* the rows of a table of learned positions, which end there; 0 without one */
    bool mixes_some;     /* some keys go into the cache multiplied by a Hadamard matrix, */
    bool mixes_all;      /* or all of them */
    bool turns_all;      /* the keys are turned by their positions, just as llama.cpp turns them again */
    bool turns_each;     /* each cache has a layer with rotary positions: one without makes it fail */
    char problem[256];   /* what the processor would fail at, or never end with; empty if nothing */
};

#ifndef LLAMACFFI_WITHOUT_GRAPH
/* Build the graph for so many tokens, sequences and outputs, and look at it.  It is built as when the
 * context was created, and computes nothing. */
void llamacffi_graph_describe(struct llama_context *context, uint32_t n_tokens, uint32_t n_seqs,
                              uint32_t n_outputs, struct llamacffi_graph *graph);
#endif /* LLAMACFFI_WITHOUT_GRAPH */

#ifndef LLAMACFFI_WITHOUT_PENDING
/* Plan now the memory for the graphs of a context, if it has put that off until the next decode, as it
 * does when its adapters or samplers change. */
void llamacffi_reserve(struct llama_context *context);

/* Do now what the memory of a context has put off until the next decode: to turn keys that were moved
 * to other positions, and to copy sequences from buffer to buffer.  A saved state would lack it.  The
 * flag that aborts the context's computations does not count: what is half done would stay so. */
void llamacffi_memory_update(struct llama_context *context, struct llamacffi_abort_flag *flag);
#endif /* LLAMACFFI_WITHOUT_PENDING */

#ifndef LLAMACFFI_WITHOUT_ROOM
/* What a snapshot of a sequence copies: bytes in main memory and on other devices, in so many tensors. */
struct llamacffi_snapshot {
    uint64_t n_host;
    uint64_t n_device;
    uint64_t n_tensors;
};

/* Tell what llama_state_seq_get_data_ext() would copy with LLAMA_STATE_SEQ_FLAGS_ON_DEVICE. */
void llamacffi_snapshot_size(struct llama_context *context, int32_t seq_id, uint32_t flags,
                             struct llamacffi_snapshot *snapshot);

/* How many bytes C needs, at most, to say what is copied where, of so many tensors. */
size_t llamacffi_snapshot_description(uint64_t n_tensors);

/* Allocate as much memory as it would, without `data` only what describes them, and free it again.  There it
 * would end the process if there were none. */
bool llamacffi_snapshot_fits(struct llama_context *context, int32_t seq_id, uint32_t flags,
                             bool data);
#endif /* LLAMACFFI_WITHOUT_ROOM */

#ifndef LLAMACFFI_WITHOUT_TURNING
/* What becomes of keys that are turned to other positions. */
#define LLAMACFFI_TURNS 0
#define LLAMACFFI_TURNS_AND_SCALES 1 /* each turn also makes them longer or shorter */
#define LLAMACFFI_TURNS_NOT 2        /* some device cannot, or does it wrongly: see `reason` */
#define LLAMACFFI_TURNS_OTHERS 3     /* also those that the model has not turned so (turns_all) */
#define LLAMACFFI_TURNS_NOTHING 4    /* a cache has no keys to turn, and llama.cpp fails (turns_each) */

/* Turn keys like those of a context on the devices that hold them, in memory of their own and on one
 * thread, and look at the result.  `type` is the enum ggml_type of the keys, `offload` whether they are on the
 * devices of their layers, and `graph` that of the context. */
int32_t llamacffi_try_turning(const struct llama_context *context, int32_t type, bool offload,
                              const struct llamacffi_graph *graph, char *reason, size_t size);

/* The largest number that divides the width of a head in all layers: of its keys, or of its values. */
int32_t llamacffi_model_head_unit(const struct llama_model *model, bool values);
#endif /* LLAMACFFI_WITHOUT_TURNING */

#ifndef LLAMACFFI_WITHOUT_MODEL
/* The devices of a model, as llama.cpp has chosen them; NULL for an `i` that there is not. */
int32_t llamacffi_model_n_devices(const struct llama_model *model);
struct ggml_backend_device *llamacffi_model_device(const struct llama_model *model, int32_t i);

/* The tensors of a model, valid as long as it is; NULL for an `i` that there is not.  One that is
 * used in two places may be there twice. */
int32_t llamacffi_model_n_tensors(const struct llama_model *model);
const struct ggml_tensor *llamacffi_model_tensor(const struct llama_model *model, int32_t i);

/* Whether the data of a tensor can be read back: some buffers keep it in a layout of their own. */
bool llamacffi_tensor_readable(const struct ggml_tensor *tensor);

/* Fail unless it is a regular expression as llama.cpp matches the names of tensors with. */
void llamacffi_check_regex(const char *pattern);
#endif /* LLAMACFFI_WITHOUT_MODEL */

/* What went wrong where a token was to be chosen or accepted; 0 and above is no failure. */
#define LLAMACFFI_SAMPLE_NONE (-1)      /* no sampler has chosen, or no candidate was left */
#define LLAMACFFI_SAMPLE_RULED_OUT (-2) /* all that was left is ruled out: its score is no number */
#define LLAMACFFI_SAMPLE_NAN (-3)       /* a score is not a number, or infinitely high */
#define LLAMACFFI_SAMPLE_LOGITS (-4)    /* the context has no scores for that output */
#define LLAMACFFI_SAMPLE_ID (-5)        /* a candidate is not in the vocabulary */
#define LLAMACFFI_SAMPLE_FAILED (-6)    /* a sampler written in Python raised */
#define LLAMACFFI_SAMPLE_GRAMMAR (-7)   /* a grammar does not allow the token */
#define LLAMACFFI_SAMPLE_TRIGGER (-8)   /* the text that triggers a grammar does not begin it */
#define LLAMACFFI_SAMPLE_STEPS (-9)     /* a grammar is so ambiguous that it takes too many steps */
#define LLAMACFFI_SAMPLE_GRAPH (-10)    /* the graph has sampled it with another chain, or not at all */

/* A chain, and what choosing with it needs.  Memory of the caller. */
struct llamacffi_chain {
    struct llama_sampler *sampler; /* the chain */
    bool grammar_first;            /* false: choose without the grammars, and ask them then */
    bool in_graph;                 /* a context samples with it in its graph */
    bool failed;                   /* a callback sets it to say that it raised */
    struct llama_token_data *data; /* room for the candidates of a context: */
    int32_t n_data;                /* as many as its vocabulary has tokens */
    int32_t n_vocab;               /* for what vocabulary; INT32_MAX if that does not matter */
    bool timed;                    /* measure what the chain does not measure itself: */
    int64_t t_sample_us;
    int32_t n_sample;              /* and what it does not count */
};

/* Copy what output `i` of the last batch has into `data`, which has room for the whole vocabulary.
 * Returns how many there are, or what went wrong. */
int32_t llamacffi_candidates(struct llama_context *context, int32_t i, struct llama_token_data *data);

/* Returns 0 if every candidate is a token of a vocabulary of that size and has a number as its score,
 * which may be infinitely low; else what is wrong. */
int32_t llamacffi_candidates_check(const struct llama_token_data_array *candidates, int32_t n_vocab);

/* As llama_sampler_sample(), but nothing is accepted that a grammar does not allow, or that is ruled
 * out.  Returns the token, or what went wrong. */
int32_t llamacffi_chain_sample(struct llamacffi_chain *chain, struct llama_context *context, int32_t i);

/* Run the chain over candidates.  Returns 0, or what is wrong with those or with the chosen one. */
int32_t llamacffi_chain_apply(struct llamacffi_chain *chain, struct llama_token_data_array *candidates);

/* Accept a token, unless a grammar does not allow it.  Returns 0, or what went wrong; then nothing has
 * changed. */
int32_t llamacffi_chain_accept(struct llamacffi_chain *chain, int32_t token);

/* Tell the samplers of the tokens before the first that is chosen; grammars and the count of
 * llamacffi_sampler_init_min_tokens() leave these out. */
void llamacffi_chain_accept_prompt(struct llamacffi_chain *chain, const int32_t *tokens, int32_t n_tokens);

/* The rules of a grammar, in arrays. */
struct llamacffi_grammar_rules {
    const int32_t *slots; /* three numbers for each symbol: LLAMACFFI_SLOT_... and what goes with it */
    int32_t n_slots;
    const int32_t *alternatives; /* the slots in which alternatives begin, rule by rule */
    int32_t n_alternatives;
    const int32_t *first; /* the first alternative of each rule, and at last the number of all */
    int32_t n_rules;
    const uint32_t *ranges; /* two numbers for each: the first character and the last */
    int32_t n_ranges;
    int32_t root; /* the rule to begin with */
};
#define LLAMACFFI_SLOT_END 0       /* of an alternative */
#define LLAMACFFI_SLOT_CHARS 1     /* a character: the first of its ranges, in order, and how many */
#define LLAMACFFI_SLOT_RULE 2      /* a rule: its number */
#define LLAMACFFI_SLOT_TOKEN 3     /* a token: its place among those that are given */
#define LLAMACFFI_SLOT_NOT_TOKEN 4 /* any other token */

/* A regular expression, as a program that is run over each character once. */
struct llamacffi_pattern {
    const int32_t *steps; /* three numbers for each: LLAMACFFI_PATTERN_... and what goes with it */
    int32_t n_steps;
    const uint32_t *ranges; /* as above */
    int32_t n_ranges;
    int32_t n_saved; /* positions: two for the match, and two for each group */
};
#define LLAMACFFI_PATTERN_MATCH 0
#define LLAMACFFI_PATTERN_SET 1    /* a character: the first of its ranges, in order, and how many */
#define LLAMACFFI_PATTERN_JUMP 2   /* go on at another step */
#define LLAMACFFI_PATTERN_SPLIT 3  /* go on at one of two steps, the first if that matches */
#define LLAMACFFI_PATTERN_SAVE 4   /* the position, under a number */
#define LLAMACFFI_PATTERN_BEGIN 5  /* only where the text begins */
#define LLAMACFFI_PATTERN_END 6    /* only where it ends */
#define LLAMACFFI_PATTERN_WORD 7   /* only where a word begins or ends */
#define LLAMACFFI_PATTERN_INSIDE 8 /* only elsewhere */

/* The texts of a vocabulary's tokens, which grammars share; they outlive the vocabulary. */
struct llamacffi_pieces;
struct llamacffi_pieces *llamacffi_pieces_init(const struct llama_vocab *vocab);
void llamacffi_pieces_free(struct llamacffi_pieces *pieces);

/* As llama_sampler_init_grammar(), and with patterns or triggers as llama_sampler_init_grammar_lazy_patterns(),
 * of rules that were read and checked before: the numbers in the arrays are taken on trust.  What a token
 * costs does not depend on how many ways there are to read the text.  The arrays are copied. */
struct llama_sampler *llamacffi_sampler_init_grammar(const struct llamacffi_grammar_rules *rules,
                                                     const int32_t *tokens,
                                                     const struct llamacffi_pattern *patterns, int32_t n_patterns,
                                                     const int32_t *triggers, int32_t n_triggers,
                                                     const struct llamacffi_pieces *pieces);

/* A sampler that rules out the tokens that end a generation, until `n` tokens were accepted. */
struct llama_sampler *llamacffi_sampler_init_min_tokens(const int32_t *ends, int32_t n_ends, int32_t n);

/* A sampler that says that the candidates are in no order: for after one that changes scores, but does
 * not say so. */
struct llama_sampler *llamacffi_sampler_init_unsorted(void);

/* How much stack llama_tokenize() needs for each byte of a text, with room to spare: it may recurse for each
 * character of a word, and so may end the process over a long one.  0 if it does not.  Takes some
 * milliseconds: it is measured. */
size_t llamacffi_stack_per_byte(const struct llama_vocab *vocab);

/* Texts of at most so many bytes are best given to llamacffi_tokenize(). */
#define LLAMACFFI_SHORT_TEXT 8192

/* What is known of a vocabulary for tokenizing.  It does not use the vocabulary when it is freed. */
struct llamacffi_tokenizer;

/* `templates` are the chat templates of the model, one after the other. */
struct llamacffi_tokenizer *llamacffi_tokenizer_new(const struct llama_vocab *vocab, const char *templates,
                                                    int64_t size);
void llamacffi_tokenizer_free(struct llamacffi_tokenizer *tokenizer);

/* As llama_tokenize(), on a stack that suffices; without `parse_special` no control token comes out of the
 * text.  Fails if the vocabulary has no token for a part of it. */
int32_t llamacffi_tokenize(const struct llamacffi_tokenizer *tokenizer, const char *text, int64_t length,
                           int32_t *tokens, int32_t size, bool add_special, bool parse_special,
                           size_t stack_per_byte);

/* Tokens of a long text, made while llamacffi_tokens_more() is called until it returns false: each time some
 * milliseconds' worth, if the text has places where it can be cut.  The text must stay where it is. */
struct llamacffi_tokens;
struct llamacffi_tokens *llamacffi_tokens_begin(const struct llamacffi_tokenizer *tokenizer, const char *text,
                                                int64_t length, bool add_special, bool parse_special,
                                                size_t stack_per_byte);
bool llamacffi_tokens_more(struct llamacffi_tokens *tokens);
int64_t llamacffi_tokens_size(const struct llamacffi_tokens *tokens);
void llamacffi_tokens_copy(const struct llamacffi_tokens *tokens, int32_t *target);
void llamacffi_tokens_free(struct llamacffi_tokens *tokens);

/* How to make a text out of tokens. */
struct llamacffi_text_style {
    bool remove_special;  /* leave out those that llama_tokenize() adds at the ends */
    bool unparse_special; /* write special tokens as their texts, instead of leaving them out */
    bool exact;           /* the pieces as they are, not what llama_detokenize() makes of them */
    bool strip_blank;     /* if exact: without one blank at the beginning and after special tokens */
};

/* As llama_detokenize(), but also returns INT32_MIN if the text does not fit an int32. */
int32_t llamacffi_detokenize(const struct llama_vocab *vocab, const int32_t *tokens, int64_t n_tokens,
                             char *text, int32_t size, const struct llamacffi_text_style *style);

/* The index of the first token that is not in the vocabulary, or -1. */
int64_t llamacffi_token_outside(const struct llama_vocab *vocab, const int32_t *tokens, int64_t n_tokens);

/* Copy the tokens that have no text where a model generates them: control tokens, unknown ones, and those
 * that end a generation.  `tokens` has room for the whole vocabulary.  Returns how many they are. */
int32_t llamacffi_textless_tokens(const struct llama_vocab *vocab, int32_t *tokens);

/* Look at the vocabulary in a file's metadata, of this kind (tokenizer.ggml.model), for what llama.cpp could
 * not read: it would not come to an end, or end the process.  `n_dummies` is how many tokens a model without
 * a vocabulary is to have.  Writes what is wrong, and returns the length of that; 0 if nothing is. */
int32_t llamacffi_vocab_fault(const struct gguf_context *gguf, const char *kind, uint64_t n_dummies, char *text,
                              size_t size);

/* Sequences of tokens, or of bytes. */
struct llamacffi_sequences;

/* Tokenize many texts, with up to `n_threads` threads: text i is at starts[i] to starts[i + 1].
 * Returns tokens, to be freed. */
struct llamacffi_sequences *llamacffi_tokenize_all(const struct llamacffi_tokenizer *tokenizer, const char *text,
                                                   const int64_t *starts, int64_t n_texts,
                                                   bool add_special, bool parse_special,
                                                   size_t stack_per_byte, int32_t n_threads);

/* The same the other way round.  Returns bytes, to be freed. */
struct llamacffi_sequences *llamacffi_detokenize_all(const struct llama_vocab *vocab,
                                                     const int32_t *tokens, const int64_t *starts,
                                                     int64_t n_sequences,
                                                     const struct llamacffi_text_style *style,
                                                     int32_t n_threads);

/* The first that failed, and why; or -1.  If one has failed, there may be nothing of the others. */
int64_t llamacffi_sequences_failed(const struct llamacffi_sequences *sequences);
const char *llamacffi_sequences_error(const struct llamacffi_sequences *sequences);

/* How many tokens or bytes they are together. */
int64_t llamacffi_sequences_size(const struct llamacffi_sequences *sequences);

/* Copy them: the elements one after the other, and where each sequence begins and the last ends. */
void llamacffi_sequences_copy(const struct llamacffi_sequences *sequences, void *elements, int64_t *starts);

void llamacffi_sequences_free(struct llamacffi_sequences *sequences);

#ifndef LLAMACFFI_WITHOUT_QUANTIZE
/* Told of each piece of text that a call logs as information; it returns false to stop the call. */
typedef bool (*llamacffi_message_callback)(const char *text, void *user_data);

/* llama_model_quantize(), which logs each tensor, and can be stopped between two of them. */
uint32_t llamacffi_quantize(const char *source, const char *target,
                            const struct llama_model_quantize_params *params,
                            llamacffi_message_callback on_message, void *user_data);

/* The enum ggml_type of most tensors in a file of that enum llama_ftype; GGML_TYPE_COUNT if nothing can
 * be quantized to it. */
int32_t llamacffi_ftype_type(int32_t ftype);
#endif /* LLAMACFFI_WITHOUT_QUANTIZE */

#ifdef __cplusplus
}
#endif
