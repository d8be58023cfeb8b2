"""llama.cpp for Python, generated from its headers.

`Model` loads a GGUF file, `Context` computes with it, `SamplerChain` chooses tokens, and `generate`
puts them together.  `lib` and `ffi` are llama.cpp's whole C API, each call guarded.

Names are imported on first use; importing the package only loads the compiled module and checks
that it fits the libraries that came with it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._ffi import __version__ as __version__
from ._ffi import ffi as ffi

if TYPE_CHECKING:
    from . import backend as backend
    from . import demo as demo
    from . import gguf as gguf
    from . import hub as hub
    from . import log as log
    from . import rpc as rpc
    from . import shards as shards
    from ._build_info import BuildInfo as BuildInfo
    from ._build_info import build_info as build_info
    from ._ffi import lib as lib
    from ._generated import constants as constants
    from ._generated import enums as enums
    from ._generated.params import ContextParams as ContextParams
    from ._generated.params import ModelParams as ModelParams
    from ._generated.params import QuantizeParams as QuantizeParams
    from .adapter import Adapter as Adapter
    from .backend import BufferType as BufferType
    from .backend import Capabilities as Capabilities
    from .backend import Device as Device
    from .backend import DeviceMemory as DeviceMemory
    from .backend import buffer_types as buffer_types
    from .backend import capabilities as capabilities
    from .backend import cpu_features as cpu_features
    from .backend import device as device
    from .backend import devices as devices
    from .backend import numa_init as numa_init
    from .backend import system_info as system_info
    from .batch import Batch as Batch
    from .candidates import Candidates as Candidates
    from .context import Context as Context
    from .control_vector import ControlVector as ControlVector
    from .custom import CustomSampler as CustomSampler
    from .custom import LogitsProcessor as LogitsProcessor
    from .errors import AbortedError as AbortedError
    from .errors import AdapterError as AdapterError
    from .errors import ArgumentError as ArgumentError
    from .errors import BackendUnavailableError as BackendUnavailableError
    from .errors import BusyError as BusyError
    from .errors import ClosedError as ClosedError
    from .errors import ContextError as ContextError
    from .errors import ContextFullError as ContextFullError
    from .errors import DecodeError as DecodeError
    from .errors import DependencyError as DependencyError
    from .errors import ForkError as ForkError
    from .errors import GgufError as GgufError
    from .errors import GrammarError as GrammarError
    from .errors import InvalidBatchError as InvalidBatchError
    from .errors import LibraryNotFoundError as LibraryNotFoundError
    from .errors import LlamaError as LlamaError
    from .errors import LoadError as LoadError
    from .errors import ModelNotFoundError as ModelNotFoundError
    from .errors import NativeError as NativeError
    from .errors import QuantizeError as QuantizeError
    from .errors import StateError as StateError
    from .errors import TokenizeError as TokenizeError
    from .errors import UnsupportedError as UnsupportedError
    from .generation import ContextShift as ContextShift
    from .generation import Generation as Generation
    from .generation import Token as Token
    from .generation import generate as generate
    from .gguf import Gguf as Gguf
    from .gguf import GgufTensor as GgufTensor
    from .grammar_sampler import Grammar as Grammar
    from .imatrix import Imatrix as Imatrix
    from .imatrix import ImatrixCollector as ImatrixCollector
    from .imatrix import compute_imatrix as compute_imatrix
    from .interop import cmake_dir as cmake_dir
    from .interop import ffi_builder as ffi_builder
    from .interop import include_dir as include_dir
    from .interop import library_dir as library_dir
    from .log import capture_logs as capture_logs
    from .lora import merge_lora as merge_lora
    from .memory import Memory as Memory
    from .model import Model as Model
    from .perf import ContextPerf as ContextPerf
    from .perf import SamplerPerf as SamplerPerf
    from .quantization import QuantizeResult as QuantizeResult
    from .quantization import ftype_name as ftype_name
    from .quantization import ftype_of as ftype_of
    from .quantization import ftypes as ftypes
    from .quantization import quantize as quantize
    from .rpc import RpcServer as RpcServer
    from .samplers import XTC as XTC
    from .samplers import AdaptiveP as AdaptiveP
    from .samplers import Dist as Dist
    from .samplers import Greedy as Greedy
    from .samplers import MinP as MinP
    from .samplers import MirostatV2 as MirostatV2
    from .samplers import Sampler as Sampler
    from .samplers import Temp as Temp
    from .samplers import TempExt as TempExt
    from .samplers import TopK as TopK
    from .samplers import TopNSigma as TopNSigma
    from .samplers import TopP as TopP
    from .samplers import Typical as Typical
    from .sampling import SamplerChain as SamplerChain
    from .snapshot import Snapshot as Snapshot
    from .state import StateInfo as StateInfo
    from .state import state_info as state_info
    from .tensor import TensorView as TensorView
    from .threads import Threadpool as Threadpool
    from .token_samplers import DRY as DRY
    from .token_samplers import Infill as Infill
    from .token_samplers import LogitBias as LogitBias
    from .token_samplers import MinTokens as MinTokens
    from .token_samplers import Mirostat as Mirostat
    from .token_samplers import Penalties as Penalties
    from .vocab import Vocab as Vocab

# Module -> the public names that it has.  A test compares this with the imports above.
_NAMES = {
    "_build_info": "BuildInfo build_info",
    "_generated.params": "ContextParams ModelParams QuantizeParams",
    "adapter": "Adapter",
    "backend": (
        "BufferType Capabilities Device DeviceMemory buffer_types capabilities cpu_features device "
        "devices numa_init system_info"
    ),
    "batch": "Batch",
    "candidates": "Candidates",
    "context": "Context",
    "control_vector": "ControlVector",
    "custom": "CustomSampler LogitsProcessor",
    "errors": (
        "AbortedError AdapterError ArgumentError BackendUnavailableError BusyError ClosedError "
        "ContextError ContextFullError DecodeError DependencyError ForkError GgufError "
        "GrammarError InvalidBatchError LibraryNotFoundError LlamaError LoadError "
        "ModelNotFoundError NativeError QuantizeError StateError TokenizeError UnsupportedError"
    ),
    "generation": "ContextShift Generation Token generate",
    "grammar_sampler": "Grammar",
    "gguf": "Gguf GgufTensor",
    "imatrix": "Imatrix ImatrixCollector compute_imatrix",
    "interop": "cmake_dir ffi_builder include_dir library_dir",
    "log": "capture_logs",
    "lora": "merge_lora",
    "memory": "Memory",
    "model": "Model",
    "perf": "ContextPerf SamplerPerf",
    "quantization": "QuantizeResult ftype_name ftype_of ftypes quantize",
    "rpc": "RpcServer",
    "samplers": (
        "AdaptiveP Dist Greedy MinP MirostatV2 Sampler Temp TempExt TopK TopNSigma TopP Typical XTC"
    ),
    "sampling": "SamplerChain",
    "snapshot": "Snapshot",
    "state": "StateInfo state_info",
    "tensor": "TensorView",
    "threads": "Threadpool",
    "token_samplers": "DRY Infill LogitBias MinTokens Mirostat Penalties",
    "vocab": "Vocab",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
_MODULES = {
    "backend": "backend",
    "constants": "_generated.constants",
    "demo": "demo",
    "enums": "_generated.enums",
    "gguf": "gguf",
    "hub": "hub",
    "log": "log",
    "rpc": "rpc",
    "shards": "shards",
}

__all__ = sorted([*_HOMES, *_MODULES, "ffi", "lib"])


if not TYPE_CHECKING:  # else a checker would take every name for one of the package
    from ._ffi import public_lib as lib  # noqa: F401  as it is compiled

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            value: Any = importlib.import_module(f"{__name__}.{_MODULES[name]}")
        elif name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
