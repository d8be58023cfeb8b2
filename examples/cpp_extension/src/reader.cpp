// The module logit_reader._reader, which reads llama.cpp's memory in place.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "llama.h"
#include "llamacffi-build.h"

namespace {

struct Logits {
    const float *data;
    int32_t size;
};

// Returns the logits of a token; the arguments are the address of a llama_context and the index of the
// token in its batch.  On failure, sets a Python error and returns null data.
Logits logits(PyObject *args) {
    PyObject *address;
    int i;
    if (!PyArg_ParseTuple(args, "Oi", &address, &i)) {
        return {};
    }
    auto *context = static_cast<llama_context *>(PyLong_AsVoidPtr(address));
    if (context == nullptr) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "the address is 0");
        }
        return {};
    }
    const float *data = llama_get_logits_ith(context, i);
    if (data == nullptr) {
        PyErr_Format(PyExc_IndexError, "the last batch has no logits of token %d", i);
        return {};
    }
    return {data, llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)))};
}

PyObject *entropy(PyObject *, PyObject *args) {
    const auto [data, size] = logits(args);
    if (data == nullptr) {
        return nullptr;
    }
    const double highest = *std::max_element(data, data + size);
    double sum = 0, weighted = 0;
    for (const float *one = data; one != data + size; ++one) {
        const double below = *one - highest, weight = std::exp(below);
        sum += weight;
        weighted += weight > 0 ? weight * below : 0; // -inf: a token that is ruled out
    }
    return PyFloat_FromDouble(std::log(sum) - weighted / sum);
}

PyObject *address(PyObject *, PyObject *args) {
    const Logits found = logits(args);
    return found.data ? PyLong_FromVoidPtr(const_cast<float *>(found.data)) : nullptr;
}

PyMethodDef methods[] = {
    {"entropy", entropy, METH_VARARGS, "entropy(context, i): in nats."},
    {"address", address, METH_VARARGS, "address(context, i): where the logits are."},
    {},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_reader", nullptr, 0, methods};

} // namespace

PyMODINIT_FUNC PyInit__reader() {
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddStringConstant(made, "BUILT", LLAMACFFI_LLAMA_CPP_COMMIT) < 0) {
        Py_CLEAR(made);
    }
    return made;
}
