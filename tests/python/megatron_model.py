"""Models of Megatron-Core on CPUs, of Hugging Face's config.json: Qwen3-MoE cut by tensor, pipeline and expert parallelism.

What Megatron has for GPUs alone is left out: its random state (there is no dropout), and its pipeline schedules and optimisers,
in whose place Pass and Trainer stand. Its layers, and what they tell one another over gloo, are its own.
"""

import json
import pathlib
import re

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.transformer_config import TransformerConfig
from safetensors.torch import load_file, save_file

PADDED_TO = 128  # rows of the embedding, on each tensor-parallel rank a multiple


def begin(**sizes):
    """Joins the ranks that torchrun has started."""
    torch.set_num_threads(1)
    # Where Megatron has its rotary table, and the last stage its copy of a tied embedding.
    torch.cuda.current_device = lambda: "cpu"
    torch.Tensor.cuda = lambda tensor: tensor
    initialize_rng_tracker(inference_rng_tracker=True)
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(**sizes)


def make_chunks(folder, dtype, **changes):
    """This rank's chunks of the model: one, or as many as its virtual pipeline has. They only evaluate, which is no other
    arithmetic here: to train experts under tensor parallelism Megatron wants sequence parallelism, which torch's norms lack."""
    hf = json.loads(pathlib.Path(folder, "config.json").read_text())
    state = parallel_state
    virtual = state.get_virtual_pipeline_model_parallel_world_size()
    experts = hf.get("num_local_experts", hf.get("num_experts"))
    dense = hf["mlp_only_layers"]
    config = TransformerConfig(
        num_layers=hf["num_hidden_layers"],
        hidden_size=hf["hidden_size"],
        ffn_hidden_size=hf["intermediate_size"],
        num_attention_heads=hf["num_attention_heads"],
        num_query_groups=hf["num_key_value_heads"],
        kv_channels=hf["head_dim"],
        layernorm_epsilon=hf["rms_norm_eps"],
        normalization="RMSNorm",
        qk_layernorm=True,
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        num_moe_experts=experts,
        moe_ffn_hidden_size=hf["moe_intermediate_size"],
        moe_router_topk=hf["num_experts_per_tok"],
        moe_layer_freq=[0 if layer in dense else 1 for layer in range(hf["num_hidden_layers"])],
        moe_router_pre_softmax=not hf["norm_topk_prob"],
        moe_router_load_balancing_type="none",
        moe_token_dispatcher_type="allgather",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        use_cpu_initialization=True,
        tensor_model_parallel_size=state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=state.get_pipeline_model_parallel_world_size(),
        virtual_pipeline_model_parallel_size=virtual,
        expert_model_parallel_size=state.get_expert_model_parallel_world_size(),
        expert_tensor_parallel_size=state.get_expert_tensor_parallel_world_size(),
        # Fused for GPUs.
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
        apply_rope_fusion=False,
        **changes,
    )
    unit = PADDED_TO * state.get_tensor_model_parallel_world_size()
    chunks = []
    for number in range(virtual or 1):
        here = {"ignore_virtual": False, "vp_stage": number if virtual else None}
        chunk = GPTModel(
            config,
            get_gpt_decoder_block_spec(config, use_transformer_engine=False, vp_stage=here["vp_stage"]),
            vocab_size=-(-hf["vocab_size"] // unit) * unit,
            max_sequence_length=hf["max_position_embeddings"],
            pre_process=state.is_pipeline_first_stage(**here),
            post_process=state.is_pipeline_last_stage(**here),
            share_embeddings_and_output_weights=hf["tie_word_embeddings"],
            position_embedding_type="rope",
            rotary_base=hf["rope_parameters"]["rope_theta"],
            vp_stage=here["vp_stage"],
        )
        chunks.append(chunk.eval().to(dtype))
    return chunks


def parameters_of(chunks):
    """By the names that a shard has for them."""
    named = {}
    for number, chunk in enumerate(chunks):
        front = f"vp_stages.{number}." if len(chunks) > 1 else ""
        named.update((front + name, parameter) for name, parameter in chunk.named_parameters())
    return named


def load(chunks, folder):
    """Takes the parameters of this rank from a folder that `weightcast convert --to megatron` has made. It calls some as
    Megatron does with Transformer Engine."""
    stored = load_file(pathlib.Path(folder, f"trainer-{dist.get_rank()}.safetensors"))
    with torch.no_grad():
        for name, parameter in parameters_of(chunks).items():
            fused = re.sub(r"local_experts\.(\d+)\.(linear_fc[12])\.weight$", r"\2.weight\1", name)
            fused = fused.replace(".input_layernorm.", ".self_attention.linear_qkv.layer_norm_")
            if fused not in stored and ".pre_mlp_layernorm." in name:
                fused = name.replace(".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_")
            parameter.copy_(stored.pop(fused))
    if stored:
        raise RuntimeError(f"nothing takes {', '.join(stored)}")


def save(chunks, folder):
    """Writes what this rank holds, as its trainer's shard."""
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().clone() for name, parameter in parameters_of(chunks).items()}
    save_file(tensors, pathlib.Path(folder, f"trainer-{dist.get_rank()}.safetensors"))


class Pass:
    """One batch through all stages, forward and back; `output` is what the last chunk gives, on the last stage."""

    def __init__(self, chunks, tokens, labels=None):
        self._inputs = []
        self._outputs = []
        batch, length = tokens.shape
        positions = torch.arange(length).expand(batch, length)
        mask = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), 1)
        self._before = parallel_state.get_pipeline_model_parallel_prev_rank()
        self._behind = parallel_state.get_pipeline_model_parallel_next_rank()
        for chunk in chunks:
            hidden = None
            if not chunk.pre_process:
                hidden = torch.empty(length, batch, chunk.config.hidden_size, dtype=chunk.config.params_dtype)
                dist.recv(hidden, self._before)
                chunk.set_input_tensor(hidden.requires_grad_())
            output = chunk(tokens, positions, mask, labels=labels if chunk.post_process else None)
            if not chunk.post_process:
                dist.send(output.detach().contiguous(), self._behind)
            self._inputs.append(hidden)
            self._outputs.append(output)
        self.output = self._outputs[-1] if chunks[-1].post_process else None

    def back(self):
        """Gradients of the mean of the output."""
        for hidden, output in zip(reversed(self._inputs), reversed(self._outputs)):
            if output is self.output:
                output.mean().backward()
            else:
                gradient = torch.empty_like(output)
                dist.recv(gradient, self._behind)
                output.backward(gradient)
            if hidden is not None:
                dist.send(hidden.grad, self._before)


class Trainer:
    """Steps of an optimiser with float32 masters, from which the parameters are made anew."""

    def __init__(self, chunks):
        self._chunks = chunks
        self._parameters = list(parameters_of(chunks).values())
        self._masters = [parameter.detach().float().clone() for parameter in self._parameters]
        self._optimizer = torch.optim.AdamW(self._masters, lr=1e-2)

    def step(self, tokens):
        Pass(self._chunks, tokens, tokens.roll(-1, 1)).back()
        group = parallel_state.get_tensor_model_parallel_group()
        for parameter, master in zip(self._parameters, self._masters):
            master.grad = torch.zeros_like(master) if parameter.grad is None else parameter.grad.float()
            # Of heads, each rank has its own: what is not cut must stay the same on all.
            if not getattr(parameter, "tensor_model_parallel", False) and getattr(parameter, "allreduce", True):
                dist.all_reduce(master.grad, group=group)
            if getattr(parameter, "shared_embedding", False):
                dist.all_reduce(master.grad, group=parallel_state.get_embedding_group())
            parameter.grad = None
        self._optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self._parameters, self._masters):
                parameter.copy_(master)


def logits_in_float32(chunks, folder, tokens, vocabulary, **changes):
    """Of the same parameters, all on the last stage; None elsewhere."""
    wide = make_chunks(folder, torch.float32, **changes)
    with torch.no_grad():
        own = parameters_of(chunks)
        for name, parameter in parameters_of(wide).items():
            parameter.copy_(own[name])
        output = Pass(wide, tokens).output
        if output is None:
            return None
        group = parallel_state.get_tensor_model_parallel_group()
        parts = [torch.empty_like(output) for _ in range(group.size())]
        dist.all_gather(parts, output.contiguous(), group=group)
        return torch.cat(parts, dim=-1)[..., :vocabulary]
