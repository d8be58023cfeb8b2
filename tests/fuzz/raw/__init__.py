"""Which functions of the raw layer end the process: each with valid pointers and bad values.

    python -m tests.fuzz.raw [--jobs N] [--few] [--compare] [FUNCTION ...]

The guard turns what C throws and asserts into `NativeError`, but not a bad pointer and not numbers
that are undefined behaviour.  Here each function is called with arguments that it accepts, then
with one of them changed: a bad number, NULL, an odd text, another object.  Each call is made in a
forked child, so all start from the same objects, and a death is a result.

    signatures   the functions, with the names of their parameters, and which are left out, and why
    pages        memory between pages that nobody may touch
    world        valid objects by the type of the pointer
    projector    a tiny model of pictures for mtmd
    structs      valid structs
    arguments    what may be given for a parameter, and the search for what a function accepts
    bad          what to change
    child        one call in a process of its own
    later        what a program would do next with the result and the arguments
    walk         all of it, for one function after another
    table        the result as data, docs/raw_unsafe.toml
    page         the data as a page, docs/raw_unsafe.md
"""
