"""Files that are damaged, hostile or only odd: documented exceptions, no signal, no hang.

    python -m tests.fuzz.files [--count N] [--seed N] [--jobs N] [--minutes N] [--replay RECIPE]

Small valid files of each kind are changed where their structure says that it matters: numbers,
types, lengths, names, shapes, offsets, texts, data.  Each is used as a program would use it, in
forked processes with limits of time and memory.  What was changed is a recipe, from which the file
can be made again; those that have failed once are kept in `corpus.jsonl`, and a test runs them.

    layout   where the parts of a GGUF are
    recipe   a changed file in a few words, and its bytes
    mutate   what is changed, by chance
    seeds    the files that are changed
    use      what is done with a file of each kind
    pool     the processes
"""
