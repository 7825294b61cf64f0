"""One rank of Megatron's trainers: offers its live parameters, version after version, as many as it is told.

torchrun megatron_trainer.py cut|interleaved CONFIG SHARDS FOLDER SAVED VERSIONS

Takes the weights from the folder SHARDS. Before each version is offered it is saved as shards SAVED/<version>, with the
logits in float32 as SAVED/logits-<version>.safetensors, and rank 0 prints a line of JSON: the version, and what a job step
needs to know of the trainers.
"""

import json
import sys

import megatron_model
import torch
import torch.distributed as dist
import weightcast.megatron
from safetensors.torch import save_file
from tiny_model import PROMPT

# Sizes for initialize_model_parallel, and what the model's config says beside them.
WAYS = {
    "cut": (
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "expert_model_parallel_size": 2,
         "expert_tensor_parallel_size": 1},
        {"num_layers_in_first_pipeline_stage": 2},
    ),
    "interleaved": (
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 2, "order": "tp-cp-ep-pp-dp"},
        {},
    ),
}  # fmt: skip


def main(way, config, shards, folder, saved, versions):
    sizes, changes = WAYS[way]
    megatron_model.begin(**sizes)
    chunks = megatron_model.make_chunks(config, torch.bfloat16, **changes)
    megatron_model.load(chunks, shards)
    vocabulary = json.load(open(config + "/config.json"))["vocab_size"]
    trainer = megatron_model.Trainer(chunks)
    with weightcast.megatron.publish(folder, chunks if len(chunks) > 1 else chunks[0]) as export:
        for version in range(1, versions + 1):
            if version > 1:
                for _ in range(2):
                    trainer.step(PROMPT)
            megatron_model.save(chunks, f"{saved}/{version}")
            logits = megatron_model.logits_in_float32(chunks, config, PROMPT, vocabulary, **changes)
            if logits is not None and dist.get_rank() == dist.get_world_size() - 1:
                save_file({"logits": logits.contiguous()}, f"{saved}/logits-{version}.safetensors")
            dist.barrier()
            if dist.get_rank() == 0:
                print(json.dumps({"version": version, "options": export.options}), flush=True)
            export.offer(version)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:6], int(sys.argv[6]))
