"""Tiny models with random weights, of kinds that the built-in one is not; by the gguf package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

N_VOCAB, N_EMBD, N_FF, N_LAYER, N_HEAD = 96, 64, 96, 2, 2
N_CTX = 512  # that they were trained with
N_SCORES = 3  # of the classifier
N_WINDOW = 16  # of the sliding attention
BLOCKS = {"eagle3": 1, "mimo2": N_LAYER + 1, "llama+shallow": 1}

Shape = tuple[int, ...]
ONES = (N_EMBD,)  # a shape of one dimension is a norm's
SQUARE = (N_EMBD, N_EMBD)
FFN = {"ffn_gate": (N_FF, N_EMBD), "ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
ATTENTION = dict.fromkeys(("attn_q", "attn_k", "attn_v"), SQUARE)
HEADS = {"token_embd": (N_VOCAB, N_EMBD), "output_norm": ONES, "output": (N_VOCAB, N_EMBD)}


def write(path: Path, kind: str) -> Path:
    """Write the model of a kind: one of `KINDS`."""
    architecture = kind.split("+")[0]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(N_VOCAB)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_block_count(BLOCKS.get(kind, N_LAYER))
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    random = np.random.default_rng(7)
    for name, shape in KINDS[kind](writer).items():
        tensor = random.standard_normal(shape, np.float32)
        if len(shape) == 1:
            tensor = 1 + 0.1 * tensor
        else:
            tensor = tensor * np.float32(0.5 if "embd" in name else 2 / shape[-1] ** 0.5)
        if name.endswith("ssm_a"):
            tensor = -np.abs(tensor)  # the state decays; it would soon be infinite
        writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(
    layers: Iterable[int], shapes: dict[str, Shape], prefix: str = "blk"
) -> dict[str, Shape]:
    """Return the shapes of layers, by the names of their tensors."""
    return {f"{prefix}.{i}.{name}.weight": shape for i in layers for name, shape in shapes.items()}


def weights(shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Return shapes by the names of tensors."""
    return {f"{name}.weight": shape for name, shape in shapes.items()}


def llama(writer: Any) -> dict[str, Shape]:
    """Attention with a cache."""
    writer.add_head_count_kv(N_HEAD)
    layer = {**ATTENTION, "attn_output": SQUARE, "attn_norm": ONES, "ffn_norm": ONES, **FFN}
    return {**weights(HEADS), **blocks(range(N_LAYER), layer)}


def shallow(writer: Any) -> dict[str, Shape]:
    """One layer of attention: what it caches depends on tokens and positions alone."""
    return {name: shape for name, shape in llama(writer).items() if ".1." not in name}


def gpt2(writer: Any) -> dict[str, Shape]:
    """Learned positions."""
    norms = ("attn_norm", "ffn_norm")
    shapes = {
        **weights({**HEADS, "position_embd": (N_CTX, N_EMBD)}),
        "output_norm.bias": ONES,
        **blocks(range(N_LAYER), {name: ONES for name in norms}),
    }
    for i in range(N_LAYER):
        for name, shape in {
            "attn_qkv": (3 * N_EMBD, N_EMBD),
            "attn_output": SQUARE,
            "ffn_up": FFN["ffn_up"],
            "ffn_down": FFN["ffn_down"],
        }.items():
            shapes |= {f"blk.{i}.{name}.weight": shape, f"blk.{i}.{name}.bias": shape[:1]}
        shapes |= {f"blk.{i}.{name}.bias": ONES for name in norms}
    return shapes


def mamba(writer: Any) -> dict[str, Shape]:
    """A recurrent state."""
    inner, state, conv, rank = 2 * N_EMBD, 16, 4, 4
    writer.add_ssm_conv_kernel(conv)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    layer = {
        "attn_norm.weight": ONES,
        "ssm_in.weight": (2 * inner, N_EMBD),
        "ssm_conv1d.weight": (inner, conv),
        "ssm_conv1d.bias": (inner,),
        "ssm_x.weight": (rank + 2 * state, inner),
        "ssm_dt.weight": (inner, rank),
        "ssm_dt.bias": (inner,),
        "ssm_a": (inner, state),
        "ssm_d": (inner,),
        "ssm_out.weight": (N_EMBD, inner),
    }
    named = {f"blk.{i}.{name}": shape for i in range(N_LAYER) for name, shape in layer.items()}
    return {**weights(HEADS), **named}


def bert(writer: Any) -> dict[str, Shape]:
    """An encoder without memory."""
    writer.add_causal_attention(False)
    writer.add_token_type_count(1)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    norms = ("attn_output_norm", "layer_output_norm")
    ffn = {"ffn_up": FFN["ffn_up"], "ffn_down": FFN["ffn_down"]}
    layer = {**ATTENTION, "attn_output": SQUARE, **ffn, **dict.fromkeys(norms, ONES)}
    start = {"token_embd": (N_VOCAB, N_EMBD), "position_embd": (N_CTX, N_EMBD)}
    return {
        **weights({**start, "token_types": (1, N_EMBD), "token_embd_norm": ONES}),
        "token_embd_norm.bias": ONES,
        **blocks(range(N_LAYER), layer),
        **{f"blk.{i}.{name}.bias": ONES for i in range(N_LAYER) for name in norms},
    }


def classifier(writer: Any) -> dict[str, Shape]:
    """An encoder that ranks."""
    writer.add_classifier_output_labels(["yes", "no", "perhaps"])
    head = {"cls.weight": SQUARE, "cls.bias": ONES, "cls.output.weight": (N_SCORES, N_EMBD)}
    return {**bert(writer), **head, "cls.output.bias": (N_SCORES,)}


def t5(writer: Any) -> dict[str, Shape]:
    """An encoder and a decoder."""
    writer.add_relative_attn_buckets_count(32)
    writer.add_decoder_start_token_id(3)
    norms = {"enc.output_norm": ONES, "dec.output_norm": ONES, "output": HEADS["output"]}
    attention = {**ATTENTION, "attn_o": SQUARE, "attn_norm": ONES, "ffn_norm": ONES, **FFN}
    cross = {f"cross_{name}": attention[name] for name in (*ATTENTION, "attn_o", "attn_norm")}
    bias = {"attn_rel_b": (32, N_HEAD)}
    return {
        **weights({"token_embd": HEADS["token_embd"], **norms}),
        **blocks(range(N_LAYER), attention, "enc.blk"),
        **blocks(range(N_LAYER), {**attention, **cross}, "dec.blk"),
        **blocks([0], bias, "enc.blk"),
        **blocks([0], bias, "dec.blk"),
    }


def t5encoder(writer: Any) -> dict[str, Shape]:
    """The encoder of the former alone."""
    return {name: shape for name, shape in t5(writer).items() if not name.startswith("dec.")}


def eagle3(writer: Any) -> dict[str, Shape]:
    """A draft model that uses weights of its target."""
    writer.add_head_count_kv(N_HEAD)
    writer.add_array("eagle3.target_layers", [0, 1, 1])
    writer.add_uint32("eagle3.target_hidden_size", N_EMBD)
    wide = (N_EMBD, 2 * N_EMBD)
    norms = dict.fromkeys(("attn_norm", "attn_norm_2", "ffn_norm"), ONES)
    layer = {**dict.fromkeys(ATTENTION, wide), "attn_output": SQUARE, **norms, **FFN}
    return {"fc.weight": (N_EMBD, 3 * N_EMBD), "output_norm.weight": ONES, **blocks([0], layer)}


def mimo2(writer: Any) -> dict[str, Shape]:
    """Sliding attention, and a layer for multi-token prediction."""
    writer.add_head_count_kv(N_HEAD)
    writer.add_nextn_predict_layers(1)
    writer.add_expert_feed_forward_length(N_FF)
    writer.add_sliding_window(N_WINDOW)
    writer.add_array("mimo2.attention.sliding_window_pattern", [True, False, True])
    qkv = {"attn_qkv": (3 * N_EMBD, N_EMBD), "attn_output": SQUARE}
    layer = {**qkv, "attn_norm": ONES, "ffn_norm": ONES, **FFN}
    nextn = {"nextn.eh_proj": (N_EMBD, 2 * N_EMBD), "nextn.enorm": ONES, "nextn.hnorm": ONES}
    return {
        **weights(HEADS),
        **blocks(range(N_LAYER + 1), layer),
        **blocks([N_LAYER], nextn),
    }


def qwen2vl(writer: Any) -> dict[str, Shape]:
    """Positions of several sections (M-RoPE)."""
    head = N_EMBD // N_HEAD
    writer.add_rope_dimension_sections([head // 4, head // 8, head // 8, 0])
    return llama(writer)


def lfm2(writer: Any) -> dict[str, Shape]:
    """A recurrent layer, whose state can go back, and one of attention."""
    writer.add_head_count_kv([0, N_HEAD])
    writer.add_shortconv_l_cache(3)
    conv = {"conv": (N_EMBD, 3), "in_proj": (3 * N_EMBD, N_EMBD), "out_proj": SQUARE}
    both = {"attn_norm": ONES, "ffn_norm": ONES, **FFN}
    heads = dict.fromkeys(("attn_q_norm", "attn_k_norm"), (N_EMBD // N_HEAD,))
    shapes = {**HEADS, "token_embd_norm": HEADS["output_norm"]}
    del shapes["output_norm"]
    return {
        **weights(shapes),
        **blocks(range(2), both),
        **blocks([0], {f"shortconv.{name}": shape for name, shape in conv.items()}),
        **blocks([1], {**ATTENTION, "attn_output": SQUARE, **heads}),
    }


KINDS: dict[str, Callable[[Any], dict[str, Shape]]] = {
    "llama": llama,
    "llama+shallow": shallow,
    "llama-embed": llama,
    "gpt2": gpt2,
    "mamba": mamba,
    "bert": bert,
    "bert+classifier": classifier,
    "t5": t5,
    "t5encoder": t5encoder,
    "eagle3": eagle3,
    "mimo2": mimo2,
    "qwen2vl": qwen2vl,
    "lfm2": lfm2,
}
