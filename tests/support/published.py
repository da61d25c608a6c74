"""Checkpoints as the authors of the methods publish them, small and with random numbers, written key by key.

Nothing here calls mmspec: key names and configurations are those of the published files.
"""

from __future__ import annotations

import json
from pathlib import Path

import models
import torch
from safetensors.torch import save_file

HIDDEN, HEADS, HEAD_DIM, INTERMEDIATE, VOCAB = 32, 4, 8, 40, models.VOCAB
DRAFTED = [3, 4, 9, 10, 11, 17, 20, 21, 30, 33, 34, 40, 41, 47, 50, 52, 55, 56]
"""The target's tokens that the reduced vocabularies have."""

EPS, BASE = 1e-3, 500.0  # unlike the targets' 1e-6 and 10000, and large enough to show


class Numbers:
    """Random tensors of one seed."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def matrix(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) / shape[-1] ** 0.5

    def bias(self, size: int) -> torch.Tensor:
        return 0.3 * torch.randn(size, generator=self.generator)

    def norm(self, size: int) -> torch.Tensor:
        return 1 + self.bias(size)


def layer(
    numbers: Numbers,
    prefix: str,
    width: int = HIDDEN,
    hidden: int = HIDDEN,
    shared: int = 2,
    bias: bool = False,
    input_norm: bool = False,
) -> dict[str, torch.Tensor]:
    """A Llama layer whose attention reads vectors of some width; `shared` is its number of key-value heads."""
    inner, keys = HEADS * HEAD_DIM, shared * HEAD_DIM
    tensors = {
        f"{prefix}.self_attn.q_proj.weight": numbers.matrix(inner, width),
        f"{prefix}.self_attn.k_proj.weight": numbers.matrix(keys, width),
        f"{prefix}.self_attn.v_proj.weight": numbers.matrix(keys, width),
        f"{prefix}.self_attn.o_proj.weight": numbers.matrix(hidden, inner),
        f"{prefix}.post_attention_layernorm.weight": numbers.norm(hidden),
    }
    if bias:
        sizes = {"q": inner, "k": keys, "v": keys}
        tensors |= {f"{prefix}.self_attn.{name}_proj.bias": numbers.bias(size) for name, size in sizes.items()}
    if input_norm:
        tensors[f"{prefix}.input_layernorm.weight"] = numbers.norm(hidden)
    return tensors | mlp(numbers, prefix, hidden)


def mlp(numbers: Numbers, prefix: str, hidden: int = HIDDEN) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.mlp.gate_proj.weight": numbers.matrix(INTERMEDIATE, hidden),
        f"{prefix}.mlp.up_proj.weight": numbers.matrix(INTERMEDIATE, hidden),
        f"{prefix}.mlp.down_proj.weight": numbers.matrix(hidden, INTERMEDIATE),
    }


def llama_config(**changes) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 512,
        "num_attention_heads": HEADS,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "rms_norm_eps": EPS,
        "rope_theta": BASE,
        "vocab_size": VOCAB,
    } | changes


def fusion(numbers: Numbers, parts: int, bias: bool = True) -> dict[str, torch.Tensor]:
    tensors = {"fc.weight": numbers.matrix(HIDDEN, parts * HIDDEN)}
    return tensors | ({"fc.bias": numbers.bias(HIDDEN)} if bias else {})


def embedding_of(model) -> dict[str, torch.Tensor]:
    """What an original stores of its target."""
    return {"embed_tokens.weight": model.get_input_embeddings().weight.detach().clone()}


def eagle(model):
    numbers = Numbers(1)
    tensors = embedding_of(model) | fusion(numbers, 2) | layer(numbers, "layers.0")
    return tensors, llama_config()


def eagle_qwen(model):
    """Grouped queries, biases of the attention, none of the fusion, the base where transformers 5 puts it."""
    numbers = Numbers(2)
    tensors = embedding_of(model) | fusion(numbers, 2, bias=False) | layer(numbers, "layers.0", shared=1, bias=True)
    config = llama_config(bias=False, qkv_bias=True, num_key_value_heads=1, head_dim=HEAD_DIM)
    del config["rope_theta"]
    return tensors, config | {"rope_parameters": {"rope_type": "default", "rope_theta": BASE}}


def msd(model):
    """For LLaVA in its authors' code: a flat configuration with `mm_` entries."""
    numbers = Numbers(3)
    tensors = embedding_of(model) | fusion(numbers, 2) | layer(numbers, "layers.0")
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(HEAD_DIM // 2)
    return tensors, llama_config(model_type="llava", mm_vision_tower="openai/clip-vit-large-patch14-336")


def msd_qwen(model):
    """A whole Qwen2-VL configuration, with M-RoPE whose axes are all the same."""
    numbers = Numbers(4)
    tensors = embedding_of(model) | fusion(numbers, 2)
    tensors |= layer(numbers, "layers.0", bias=True, input_norm=True)
    config = llama_config(model_type="qwen2_vl", vision_config={"depth": 32})
    return tensors, config | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}


def vispec(model):
    """Without grouped queries, whatever the configuration says; three queries of the adaptor."""
    numbers = Numbers(5)
    tensors = embedding_of(model) | fusion(numbers, 2) | layer(numbers, "layers.0", shared=HEADS, bias=True)
    tensors |= {
        "img_fc.weight": numbers.matrix(HIDDEN, 2 * HIDDEN),
        "img_fc.bias": numbers.bias(HIDDEN),
        "imadpt.q": numbers.matrix(3, HEADS, HEAD_DIM),
        "imadpt.k_proj.weight": numbers.matrix(HIDDEN, HIDDEN),
        "imadpt.k_proj.bias": numbers.bias(HIDDEN),
        "imadpt.v_proj.weight": numbers.matrix(HIDDEN, HIDDEN),
        "imadpt.v_proj.bias": numbers.bias(HIDDEN),
        "imadpt.o_proj.weight": numbers.matrix(HIDDEN, HIDDEN),
    }
    return tensors, llama_config(num_attention_heads=16, num_key_value_heads=2)


def hivis(model):
    numbers = Numbers(6)
    tensors = embedding_of(model) | fusion(numbers, 3) | layer(numbers, "layers.0", bias=True)
    return tensors | {"residual": numbers.matrix(3, HIDDEN) * 5}, llama_config()


def hivis_old(model):
    """The older name of the residual, and one row of it."""
    tensors, config = hivis(model)
    tensors["adaptive_embedding"] = tensors.pop("residual")[:1]
    return tensors, config


def dream(model):
    numbers, name = Numbers(7), "layers.1.cross_attn"
    tensors = layer(numbers, "layers.0") | layer(numbers, "layers.2", input_norm=True) | mlp(numbers, "layers.1")
    inner, keys = HEADS * HEAD_DIM, 2 * HEAD_DIM
    tensors |= {
        f"{name}.q_proj.weight": numbers.matrix(inner, HIDDEN),
        f"{name}.k_proj.weight": numbers.matrix(keys, HIDDEN),
        f"{name}.v_proj.weight": numbers.matrix(keys, HIDDEN),
        f"{name}.o_proj.weight": numbers.matrix(HIDDEN, inner),
        f"{name}.q_norm.weight": numbers.norm(HEAD_DIM),
        f"{name}.k_norm.weight": numbers.norm(HEAD_DIM),
        "layers.1.cross_attn_attn_gate": torch.tensor([0.9]),
        "layers.1.cross_attn_mlp_gate": torch.tensor([-0.7]),
        "layers.1.input_layernorm.weight": numbers.norm(HIDDEN),
        "layers.1.post_attention_layernorm.weight": numbers.norm(HIDDEN),
        "norm.weight": numbers.norm(HIDDEN),
    }
    return tensors, llama_config(num_hidden_layers=3)


def eagle3(model, hidden: int = HIDDEN, seed: int = 8, target: int = HIDDEN):
    """SafeAILab's and AngelSlim's names; the layers that the states leave."""
    numbers = Numbers(seed)
    tensors = layer(numbers, "midlayer", width=2 * hidden, hidden=hidden, input_norm=True)
    tensors |= {
        "fc.weight": numbers.matrix(hidden, 3 * target),
        "midlayer.hidden_norm.weight": numbers.norm(hidden),
        "norm.weight": numbers.norm(hidden),
        "lm_head.weight": numbers.matrix(len(DRAFTED), hidden),
        **vocabulary(),
    }
    config = llama_config(hidden_size=hidden, draft_vocab_size=len(DRAFTED), modal_type="VLM")
    return tensors, config | {"aux_hidden_states_layer_ids": [0, 0, 1]}


def vocabulary() -> dict[str, torch.Tensor]:
    """Offsets from draft tokens to the target's, and which of the target's there are."""
    marked = torch.zeros(VOCAB, dtype=torch.bool)
    marked[DRAFTED] = True
    return {"d2t": torch.tensor(DRAFTED) - torch.arange(len(DRAFTED)), "t2d": marked}


def eagle3_speculators(model):
    """EAGLE-3.1 by speculators: a layer called `layers.0`, a nested configuration, the layers that the states enter."""
    tensors, inner = eagle3(model, seed=9)
    numbers = Numbers(10)
    tensors = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items()}
    tensors |= {f"model.fc_norm.{stream}.weight": numbers.norm(HIDDEN) for stream in range(3)} | embedding_of(model)
    for name in ("aux_hidden_states_layer_ids", "modal_type", "draft_vocab_size"):
        del inner[name]
    config = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "transformer_layer_config": inner,
        "draft_vocab_size": len(DRAFTED),
        "eagle_aux_hidden_state_layer_ids": [1, 0, 2],
        "fc_norm": True,
        "norm_output": True,
        "norm_before_residual": False,
    }
    return tensors, config


def peagle(model):
    """P-EAGLE by speculators: three layers, an embedding that was trained along."""
    numbers = Numbers(23)
    tensors = layer(numbers, "layers.0", width=2 * HIDDEN, input_norm=True)
    tensors |= layer(numbers, "layers.1", input_norm=True) | layer(numbers, "layers.2", input_norm=True)
    tensors |= {
        "embed_tokens.weight": numbers.matrix(VOCAB, HIDDEN) * HIDDEN**0.5,
        "fc.weight": numbers.matrix(HIDDEN, 3 * HIDDEN),
        "layers.0.hidden_norm.weight": numbers.norm(HIDDEN),
        "norm.weight": numbers.norm(HIDDEN),
        "lm_head.weight": numbers.matrix(len(DRAFTED), HIDDEN),
        "mask_hidden": numbers.matrix(1, 1, 3 * HIDDEN) * 10,
        **vocabulary(),
    }
    config = {
        "architectures": ["PEagleSpeculator"],
        "speculators_model_type": "peagle",
        "speculators_config": {"algorithm": "peagle", "proposal_methods": [{"speculative_tokens": 5}]},
        "transformer_layer_config": llama_config(num_hidden_layers=3),
        "draft_vocab_size": len(DRAFTED),
        "eagle_aux_hidden_state_layer_ids": [1, 1, 2],
        "embed_requires_grad": True,
        "norm_before_residual": True,
        "mask_token_id": DRAFTED[2],
    }
    return tensors, config


def peagle_vllm(model):
    """The same under vLLM's names: a flat configuration, one axis less; EAGLE-3.1's norms, all tokens, one layer."""
    tensors, config = peagle(model)
    numbers = Numbers(24)
    gone = ("layers.1.", "layers.2.", "d2t", "t2d", "embed_tokens.")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(gone)}
    tensors |= {f"fc_norm.{stream}.weight": numbers.norm(HIDDEN) for stream in range(3)} | embedding_of(model)
    tensors |= {"lm_head.weight": numbers.matrix(VOCAB, HIDDEN), "mask_hidden": tensors["mask_hidden"][0]}
    config = llama_config(parallel_drafting=True, ptd_token_id=7, eagle_aux_hidden_state_layer_ids=[1, 0, 2])
    return tensors, config


def eagle3_other_width(model):
    """Wider than its target, so with an embedding of its own; gpt-oss's norm before the fusion; all tokens."""
    tensors, config = eagle3(model, hidden=48, seed=11)
    numbers = Numbers(12)
    del tensors["d2t"], tensors["t2d"], config["aux_hidden_states_layer_ids"]
    tensors |= {
        "input_norm.weight": numbers.norm(3 * HIDDEN),
        "embed_tokens.weight": numbers.matrix(VOCAB + 3, 48) * 48**0.5,
        "lm_head.weight": numbers.matrix(VOCAB, 48),
    }
    config |= {"norm_before_fc": True, "norm_before_residual": True, "target_hidden_size": HIDDEN, "head_dim": HEAD_DIM}
    return tensors, config | {"draft_vocab_size": VOCAB}


def eagle3_mrope(model, interleaved: bool = False):
    tensors, config = eagle3(model, seed=13)
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    return tensors, config | {"rope_scaling": rope | ({"mrope_interleaved": True} if interleaved else {})}


def eagle3_interleaved(model):
    return eagle3_mrope(model, interleaved=True)


def mtp(model):
    """Qwen3.5's layer: norms that multiply by one more than their weight, a gate among the queries, half of a head
    turned, by three axes that take turns."""
    numbers = Numbers(21)
    tensors = layer(numbers, "mtp.layers.0", input_norm=True) | {
        "mtp.layers.0.self_attn.q_proj.weight": numbers.matrix(2 * HEADS * HEAD_DIM, HIDDEN),
        "mtp.layers.0.self_attn.q_norm.weight": numbers.norm(HEAD_DIM),
        "mtp.layers.0.self_attn.k_norm.weight": numbers.norm(HEAD_DIM),
        "mtp.fc.weight": numbers.matrix(HIDDEN, 2 * HIDDEN),
        **{f"mtp.{name}.weight": numbers.norm(HIDDEN) for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden")},
        "mtp.norm.weight": numbers.norm(HIDDEN),
    }
    tensors = {name: tensor - 1 if "norm" in name else tensor for name, tensor in tensors.items()}
    rope = {"rope_type": "default", "rope_theta": BASE, "partial_rotary_factor": 0.5}
    rope |= {"mrope_section": [1, 1, 0], "mrope_interleaved": True}
    inner = llama_config(model_type="qwen3_5_text", head_dim=HEAD_DIM, rope_parameters=rope)
    del inner["rope_theta"], inner["architectures"]
    return tensors, {"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": inner}


def mtp_speculators(model):
    """Speculators' names, for a Qwen3: norms of queries and keys."""
    numbers = Numbers(22)
    tensors = layer(numbers, "mtp_layers.0", input_norm=True) | {
        "mtp_layers.0.self_attn.q_norm.weight": numbers.norm(HEAD_DIM),
        "mtp_layers.0.self_attn.k_norm.weight": numbers.norm(HEAD_DIM),
        "mtp_layers.0.input_proj.weight": numbers.matrix(HIDDEN, 2 * HIDDEN),
        **{f"mtp_layers.0.{name}_layernorm.weight": numbers.norm(HIDDEN) for name in ("token", "hidden", "final")},
    }
    inner = llama_config(model_type="qwen3")
    return tensors, {
        "architectures": ["MTPDraftModel"],
        "speculators_model_type": "mtp",
        "num_speculative_steps": 3,
        "transformer_layer_config": inner,
    }


def mtp_appended(model):
    """DeepSeek's and GLM's names: three layers behind the model's own, each with a copy of its embedding."""
    numbers, tensors = Numbers(23), {}
    for number in (61, 62, 63):
        prefix = f"model.layers.{number}"
        tensors |= layer(numbers, prefix, input_norm=True) | {
            f"{prefix}.eh_proj.weight": numbers.matrix(HIDDEN, 2 * HIDDEN),
            **{f"{prefix}.{name}.weight": numbers.norm(HIDDEN) for name in ("enorm", "hnorm", "shared_head.norm")},
            f"{prefix}.embed_tokens.weight": model.get_input_embeddings().weight.detach().clone(),
        }
    return tensors, llama_config(num_nextn_predict_layers=3)


def mtp_mimo(model):
    """MiMo's names, as its repository has them: states before embeddings."""
    numbers, tensors = Numbers(24), {}
    for number in range(2):
        prefix = f"model.mtp_layers.{number}"
        tensors |= layer(numbers, prefix, input_norm=True) | {
            f"{prefix}.input_proj.weight": numbers.matrix(HIDDEN, 2 * HIDDEN),
            **{f"{prefix}.{name}_layernorm.weight": numbers.norm(HIDDEN) for name in ("token", "hidden", "final")},
        }
    return tensors, llama_config(model_type="mimo", num_nextn_predict_layers=2)


def mtp_shared(model):
    """Qwen3.5's names with two layers, which share the fusion and all norms outside."""
    tensors, config = mtp(model)
    numbers = Numbers(25)
    first = {name: tensor for name, tensor in tensors.items() if "layers.0" in name}
    second = {
        name.replace("layers.0", "layers.1"): numbers.matrix(*tensor.shape) if tensor.ndim > 1 else tensor + 0.1
        for name, tensor in first.items()
    }
    return tensors | second, config


WRITERS = {
    "eagle": eagle,
    "eagle, qwen": eagle_qwen,
    "msd": msd,
    "msd, qwen": msd_qwen,
    "vispec": vispec,
    "hivis": hivis,
    "hivis, old": hivis_old,
    "dream": dream,
    "mtp": mtp,
    "mtp, speculators": mtp_speculators,
    "mtp, appended": mtp_appended,
    "mtp, mimo": mtp_mimo,
    "mtp, shared": mtp_shared,
    "eagle3": eagle3,
    "eagle3, speculators": eagle3_speculators,
    "eagle3, other width": eagle3_other_width,
    "eagle3, mrope": eagle3_mrope,
    "eagle3, interleaved": eagle3_interleaved,
    "peagle": peagle,
    "peagle, vLLM": peagle_vllm,
}


def write(folder: Path, tensors: dict, config: dict, shards: int = 1) -> str:
    """A folder with a checkpoint, in one file or several; returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return str(folder)
    names = {
        name: f"model-{number % shards + 1:05d}-of-{shards:05d}.safetensors" for number, name in enumerate(tensors)
    }
    for file in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)
