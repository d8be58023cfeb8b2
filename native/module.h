/* The Python half of the guard, included before the C that CFFI generates for `_llama`. */
#pragma once

#include <Python.h>

#include <locale.h>
#if defined(__APPLE__)
#include <xlocale.h>
#endif

#include "guard.h"

/* CFFI functions with pointer arguments have a local variable of this name.  In other functions the macro
 * below refers to this one. */
static struct _cffi_freeme_s *const large_args_free = NULL;

static PyObject *llamacffi_raise(void);

/* CFFI begins and ends every call with these macros.
 *
 * A call starts with a guard of its own even if C has called the Python code that makes it, since an
 * exception must not unwind the interpreter's frames.  At the end, raise what the guard has caught, and
 * ignore the result. */
#undef Py_BEGIN_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS                                                                     \
    {                                                                                              \
        LLAMACFFI_COUNT_CALL(1);                                                                   \
        PyThreadState *_save = PyEval_SaveThread();                                                \
        int llamacffi_depth = llamacffi_guard.depth;                                               \
        llamacffi_guard.depth = 0;

#undef Py_END_ALLOW_THREADS
#define Py_END_ALLOW_THREADS                                                                       \
    llamacffi_guard.depth = llamacffi_depth;                                                       \
    PyEval_RestoreThread(_save);                                                                   \
    LLAMACFFI_COUNT_CALL(-1);                                                                      \
    }                                                                                              \
    if (__builtin_expect(llamacffi_guard.message != NULL, 0)) {                                    \
        if (large_args_free != NULL) {                                                             \
            _cffi_free_array_arguments(large_args_free);                                           \
        }                                                                                          \
        return llamacffi_raise();                                                                  \
    }

/* Python code that C calls is outside of the guard: if it calls llama.cpp without `lib` and an assertion
 * fails, the process ends, since an exception must not unwind the interpreter.  It also gets its own
 * locale back. */
static void llamacffi_call_python(struct _cffi_externpy_s *trampoline, char *arguments) {
    int depth = llamacffi_guard.depth;
    locale_t inside = llamacffi_guard.locale ? uselocale((locale_t)llamacffi_guard.locale) : NULL;
    llamacffi_guard.depth = 0;
    _cffi_call_python(trampoline, arguments);
    llamacffi_guard.depth = depth;
    if (inside) {
        uselocale(inside);
    }
}
#undef _cffi_call_python
#define _cffi_call_python llamacffi_call_python

/* Raises the exception that llamacffi.log.native_error() creates, with lines of the log. */
static PyObject *llamacffi_raise(void) {
    const char *function = llamacffi_guard.function;
    char *message = llamacffi_guard.message;
    PyObject *log = NULL, *text = NULL, *error = NULL;

    llamacffi_guard.message = NULL;
    text = PyUnicode_DecodeUTF8(message, (Py_ssize_t)strlen(message), "replace");
    free(message);
    if (text != NULL) {
        log = PyImport_ImportModule("llamacffi.log");
    }
    if (log != NULL) {
        error = PyObject_CallMethod(log, "native_error", "sO", function, text);
    }
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    }
    Py_XDECREF(error);
    Py_XDECREF(log);
    Py_XDECREF(text);
    return NULL;
}
