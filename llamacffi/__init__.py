"""llama.cpp for Python, generated from its headers.

`Model` loads a GGUF file, `Context` computes with it, `SamplerChain` chooses tokens, and `generate`
puts them together.  `lib` and `ffi` are llama.cpp's whole C API, each call guarded.

Names are imported on first use; importing the package only loads the compiled module and checks
that it fits the libraries that came with it.
"""

from __future__ import annotations

import importlib

from ._native import __version__ as __version__
from ._native import ffi as ffi

TYPE_CHECKING = False  # `typing` costs more than the rest of the Python that is imported here
if TYPE_CHECKING:
    from typing import Any

    from . import backend as backend
    from . import demo as demo
    from . import gguf as gguf
    from . import hub as hub
    from . import log as log
    from . import rpc as rpc
    from . import shards as shards
    from ._generated import constants as constants
    from ._generated import enums as enums
    from ._generated.context_params import ContextParams as ContextParams
    from ._generated.model_params import ModelParams as ModelParams
    from ._generated.model_quantize_params import QuantizeParams as QuantizeParams
    from ._native import lib as lib
    from ._native.build_info import BuildInfo as BuildInfo
    from ._native.build_info import build_info as build_info
    from ._native.interop import cmake_dir as cmake_dir
    from ._native.interop import ffi_builder as ffi_builder
    from ._native.interop import include_dir as include_dir
    from ._native.interop import library_dir as library_dir
    from .adapter.adapter import Adapter as Adapter
    from .adapter.control_vector import ControlVector as ControlVector
    from .backend.registry import BufferType as BufferType
    from .backend.registry import Capabilities as Capabilities
    from .backend.registry import Device as Device
    from .backend.registry import DeviceMemory as DeviceMemory
    from .backend.registry import buffer_types as buffer_types
    from .backend.registry import capabilities as capabilities
    from .backend.registry import cpu_features as cpu_features
    from .backend.registry import device as device
    from .backend.registry import devices as devices
    from .backend.registry import numa_init as numa_init
    from .backend.registry import system_info as system_info
    from .backend.rpc import RpcServer as RpcServer
    from .backend.tensor import TensorView as TensorView
    from .backend.threads import Threadpool as Threadpool
    from .batch.batch import Batch as Batch
    from .context.context import Context as Context
    from .context.memory import Memory as Memory
    from .context.perf_types import ContextPerf as ContextPerf
    from .context.snapshot import Snapshot as Snapshot
    from .context.state import StateInfo as StateInfo
    from .context.state import state_info as state_info
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
    from .generation.generation import ContextShift as ContextShift
    from .generation.generation import Generation as Generation
    from .generation.generation import Token as Token
    from .generation.generation import generate as generate
    from .gguf.gguf import Gguf as Gguf
    from .gguf.gguf import GgufTensor as GgufTensor
    from .log import capture_logs as capture_logs
    from .model.model import Model as Model
    from .sampling.base import Sampler as Sampler
    from .sampling.candidates import Candidates as Candidates
    from .sampling.chain import SamplerChain as SamplerChain
    from .sampling.custom import CustomSampler as CustomSampler
    from .sampling.custom import LogitsProcessor as LogitsProcessor
    from .sampling.grammar import Grammar as Grammar
    from .sampling.perf import SamplerPerf as SamplerPerf
    from .sampling.samplers import XTC as XTC
    from .sampling.samplers import AdaptiveP as AdaptiveP
    from .sampling.samplers import Dist as Dist
    from .sampling.samplers import Greedy as Greedy
    from .sampling.samplers import MinP as MinP
    from .sampling.samplers import MirostatV2 as MirostatV2
    from .sampling.samplers import Temp as Temp
    from .sampling.samplers import TempExt as TempExt
    from .sampling.samplers import TopK as TopK
    from .sampling.samplers import TopNSigma as TopNSigma
    from .sampling.samplers import TopP as TopP
    from .sampling.samplers import Typical as Typical
    from .sampling.token_samplers import DRY as DRY
    from .sampling.token_samplers import Infill as Infill
    from .sampling.token_samplers import LogitBias as LogitBias
    from .sampling.token_samplers import MinTokens as MinTokens
    from .sampling.token_samplers import Mirostat as Mirostat
    from .sampling.token_samplers import Penalties as Penalties
    from .tools.imatrix import Imatrix as Imatrix
    from .tools.imatrix import ImatrixCollector as ImatrixCollector
    from .tools.imatrix import compute_imatrix as compute_imatrix
    from .tools.merge_lora import merge_lora as merge_lora
    from .tools.quantize import QuantizeResult as QuantizeResult
    from .tools.quantize import ftype_name as ftype_name
    from .tools.quantize import ftype_of as ftype_of
    from .tools.quantize import ftypes as ftypes
    from .tools.quantize import quantize as quantize
    from .vocab.vocab import Vocab as Vocab

# Module -> the public names that it has.  A test compares this with the imports above.
_NAMES = {
    "_generated.context_params": "ContextParams",
    "_generated.model_params": "ModelParams",
    "_generated.model_quantize_params": "QuantizeParams",
    "_native.build_info": "BuildInfo build_info",
    "_native.interop": "cmake_dir ffi_builder include_dir library_dir",
    "adapter.adapter": "Adapter",
    "adapter.control_vector": "ControlVector",
    "backend.registry": (
        "BufferType Capabilities Device DeviceMemory buffer_types capabilities cpu_features "
        "device devices numa_init system_info"
    ),
    "backend.rpc": "RpcServer",
    "backend.tensor": "TensorView",
    "backend.threads": "Threadpool",
    "batch.batch": "Batch",
    "context.context": "Context",
    "context.memory": "Memory",
    "context.perf_types": "ContextPerf",
    "context.snapshot": "Snapshot",
    "context.state": "StateInfo state_info",
    "errors": (
        "AbortedError AdapterError ArgumentError BackendUnavailableError BusyError ClosedError "
        "ContextError ContextFullError DecodeError DependencyError ForkError GgufError "
        "GrammarError InvalidBatchError LibraryNotFoundError LlamaError LoadError "
        "ModelNotFoundError NativeError QuantizeError StateError TokenizeError UnsupportedError"
    ),
    "generation.generation": "ContextShift Generation Token generate",
    "gguf.gguf": "Gguf GgufTensor",
    "log": "capture_logs",
    "model.model": "Model",
    "sampling.base": "Sampler",
    "sampling.candidates": "Candidates",
    "sampling.chain": "SamplerChain",
    "sampling.custom": "CustomSampler LogitsProcessor",
    "sampling.grammar": "Grammar",
    "sampling.perf": "SamplerPerf",
    "sampling.samplers": (
        "AdaptiveP Dist Greedy MinP MirostatV2 Temp TempExt TopK TopNSigma TopP Typical XTC"
    ),
    "sampling.token_samplers": "DRY Infill LogitBias MinTokens Mirostat Penalties",
    "tools.imatrix": "Imatrix ImatrixCollector compute_imatrix",
    "tools.merge_lora": "merge_lora",
    "tools.quantize": "QuantizeResult ftype_name ftype_of ftypes quantize",
    "vocab.vocab": "Vocab",
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
    from ._native import public_lib as lib  # noqa: F401  as it is compiled

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
