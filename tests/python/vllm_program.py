"""A vLLM that does what it is asked, until its input ends.

vllm_program.py MODEL OPTIONS

OPTIONS are arguments of vLLM's LLM. Each line of its input is a list of a name below and arguments, in JSON; each is answered by
a line: what the call returns, or {"error": its text}. All of them run in this process and, with two ranks, in vLLM's workers.
"""

import json
import os
import sys

PROMPT = [103, 104, 105, 35, 98]  # "def _"


class Engine:
    def __init__(self, model, options):
        from vllm import LLM

        self.llm = LLM(
            model,
            skip_tokenizer_init=True,
            max_model_len=128,
            dtype="bfloat16",
            enforce_eager=True,
            weight_transfer_config={"backend": "weightcast"},
            **options,
        )

    def generate(self):
        """The likeliest ids behind a fixed prompt."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0, max_tokens=32, detokenize=False, ignore_eos=True)
        (result,) = self.llm.generate({"prompt_token_ids": PROMPT}, parameters, use_tqdm=False)
        self.llm.reset_prefix_cache()
        return list(result.outputs[0].token_ids)

    def checksums(self):
        """SHA-256 of every parameter on every rank, by vLLM."""
        return {key: value for of in self.llm.collective_rpc("compute_weight_checksums") for key, value in of.items()}

    def places(self):
        return self.llm.collective_rpc(_places)

    def move(self, name, rank):
        """Gives a parameter other memory on a rank, as a reload might."""
        self.llm.collective_rpc(_move, args=(name, rank))

    def wrap(self, rank):
        """Puts a layer into another module on a rank, as an adapter does."""
        self.llm.collective_rpc(_wrap, args=(rank,))

    def unwrap(self):
        self.llm.collective_rpc(_unwrap)

    def reload(self):
        """vLLM's own loader, over the weights that it has."""
        self.llm.collective_rpc("reload_weights")

    def put_back(self):
        self.llm.collective_rpc(_put_back)

    def hinder(self, rank):
        """Lets the model's loader raise once on a rank."""
        self.llm.collective_rpc(_hinder, args=(rank,))

    def init(self, info):
        self.llm.init_weight_transfer_engine({"init_info": info})

    def start(self):
        self.llm.start_weight_update()

    def update(self, info):
        self.llm.update_weights({"update_info": info})

    def finish(self):
        self.llm.finish_weight_update()

    def shutdown(self):
        self.llm.collective_rpc("shutdown_weight_transfer_engine")


def _places(worker):
    return {name: parameter.data_ptr() for name, parameter in worker.model_runner.model.named_parameters()}


def _move(worker, name, rank):
    if worker.rank == rank:
        parameter = worker.model_runner.model.get_parameter(name)
        worker.moved = parameter, parameter.data
        parameter.data = parameter.data.clone()


def _put_back(worker):
    if hasattr(worker, "moved"):
        parameter, data = worker.moved
        parameter.data = data
        del worker.moved


def _wrap(worker, rank):
    import torch

    class Adapter(torch.nn.Module):
        def __init__(self, base_layer):
            super().__init__()
            self.base_layer = base_layer

    if worker.rank == rank:
        attention = worker.model_runner.model.model.layers[1].self_attn
        worker.wrapped = attention, attention.qkv_proj
        attention.qkv_proj = Adapter(attention.qkv_proj)


def _unwrap(worker):
    if hasattr(worker, "wrapped"):
        attention, attention.qkv_proj = worker.wrapped
        del worker.wrapped


def _hinder(worker, rank):
    model = worker.model_runner.model
    load = model.load_weights

    def raise_once(weights):
        model.load_weights = load
        raise ValueError("a test wants it so")

    if worker.rank == rank:
        model.load_weights = raise_once


def main(model, options):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM's log
    engine = Engine(model, json.loads(options))
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = getattr(engine, name)(*arguments)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
