"""What of vLLM's engines is refused, by name, and what its kernels have made of unquantised experts."""

from vllm.platforms import current_platform

from ._library import Error

# Job steps' --moe-layout by what vLLM calls its kernels of unquantised experts.
_MOE_LAYOUTS = {"TRITON": "triton", "BATCHED_TRITON": "triton", "FlashInfer CUTLASS": "cutlass", "CPU": "vllm-cpu"}


def _refuse(*findings):
    for found, why, remedy in findings:
        if found:
            raise Error(64, f"{why}; {remedy}")


def require_in_use(config, model):
    """Refuses what has other weights than the model's own in use, or derives weights that would stay as they are."""
    parallel = config.parallel_config
    offload = config.offload_config
    _refuse(
        (config.model_config.enable_sleep_mode, "memory of the sleep mode cannot be opened by another process, and must not "
         "be written while the engine is asleep", "start without --enable-sleep-mode"),
        (config.lora_config, "adapters wrap the layers", "start without --enable-lora"),
        (config.speculative_config and config.speculative_config.method not in ("ngram", "suffix"), "a draft model would keep its weights", "start without --speculative-config"),
        (offload.uva.cpu_offload_gb or offload.prefetch.offload_group_size, "offloaded weights move", "start without offloading"),
        (parallel.enable_eplb, "experts move between ranks", "start without --enable-eplb"),
        (parallel.data_parallel_size > 1, "experts are cut over data-parallel ranks",
         "start a server for each, with 'replica' and 'replicas' in init_info"),
        (parallel.prefill_context_parallel_size > 1, "ranks of context parallelism have the same weights",
         "start without --prefill-context-parallel-size"),
        (hasattr(model, "process_weights_after_loading"), f"{type(model).__name__} derives weights of its own",
         "serve another model"),
    )  # fmt: skip


def require_writable(config, model):
    """Refuses what cannot be written in place, or lies where the plan does not know it."""
    parallel = config.parallel_config
    _refuse(
        (config.model_config.quantization, "quantised weights are repacked by vLLM's kernels",
         "let init_info say \"landing\": \"loader\", or serve an unquantised model"),
        (parallel.enable_expert_parallel and parallel.expert_placement_strategy != "linear", "experts must be placed linearly",
         "start without --expert-placement-strategy"),
    )  # fmt: skip
    _require_unpacked(model)
    moe_layouts(model)


def require_loadable(config, model):
    """Refuses what the model's own loader does not load a second time."""
    if not current_platform.is_cpu():
        return
    _refuse((config.model_config.quantization, "quantised weights are packed for the CPU's kernels", "serve an unquantised model"))
    _require_unpacked(model)
    for name, module in model.named_modules():
        if hasattr(getattr(module, "quant_method", None), "unquantized_backend"):
            raise Error(
                64, f"{name}: experts are packed for the CPU's kernels, and vLLM's loader would write over them as they are not; "
                "let init_info say \"landing\": \"direct\"")  # fmt: skip


def require_loader_beside(model, window, fed):
    """Refuses what the loader cannot write while a job step writes the rest in place."""
    if not window:
        return
    first = next(iter(window))
    if not current_platform.is_cpu():
        raise Error(
            64, f"tensor {first} goes through vLLM's own loader and its window in the host's memory, and parameters are on a GPU; "
            "let init_info say \"landing\": \"loader\"")  # fmt: skip
    for name in sorted(fed):
        if hasattr(getattr(model.get_submodule(name.rpartition(".")[0]), "quant_method", None), "unquantized_backend"):
            raise Error(
                64, f"parameter {name}: goes through vLLM's own loader, but experts are packed for the CPU's kernels, which the "
                "loader would write over; serve another model")  # fmt: skip


def _require_unpacked(model):
    for name, module in model.named_modules():
        if hasattr(module, "_cpu_unpacked_conv_weight"):
            raise Error(64, f"parameter {name}.weight: vLLM has packed it for this CPU's convolutions; serve another model")
    for name, parameter in model.named_parameters():
        if parameter.numel() == 0:
            raise Error(64, f"parameter {name} is empty: vLLM has packed it for a kernel; serve another model")


def moe_layouts(model):
    """The --moe-layout of the experts: one at most."""
    found = set()
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        backend = getattr(method, "unquantized_backend", None)
        if backend is None:
            continue
        kernel = method.experts_cls.__name__
        layout = _MOE_LAYOUTS.get(backend.value)
        if layout is None or (backend.value == "CPU" and (kernel != "CPUUnquantizedExperts" or current_platform.is_zen_cpu())):
            raise Error(
                64, f"{name}: experts lie as {backend.value} ({kernel}) reads them, which no --moe-layout says; choose --moe-backend triton"
            )  # fmt: skip
        found.add(layout)
    return sorted(found)


def require_learnable(model):
    """A map has the experts as vLLM's loader puts them: what kernels have turned round since is not in it."""
    for layout in moe_layouts(model):
        if layout not in ("triton", "vllm-cpu"):
            raise Error(
                64, f"experts lie as --moe-layout {layout} says, which is not put on top of a landing map; choose --moe-backend triton"
            )  # fmt: skip
