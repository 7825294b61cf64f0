"""vLLM as an engine: a backend of its weight transfer, so that a job step writes new weights over the parameters of its workers.

    pip install weightcast
    vllm serve MODEL --weight-transfer-config '{"backend": "weightcast"}'

vLLM calls register() in each of its processes. The backend itself, which needs vLLM and torch, is _vllm_engine.py.
"""


def register():
    """Entry point of the group vllm.general_plugins. A vLLM without weight transfer is left as it is."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    except ImportError:
        return
    try:
        WeightTransferEngineFactory.register_engine("weightcast", "weightcast._vllm_engine", "WeightcastEngine")
    except ValueError:
        return  # this process has called it before
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        _keep_linears_plain()


def _keep_linears_plain():
    """On a CPU vLLM gives the weights of linear layers to a library that packs a copy, and frees them: nothing could be
    written in place. Where this backend is chosen, layers read their weights as they are, at every call."""
    import torch
    from vllm.config import get_current_vllm_config_or_none
    from vllm.model_executor.layers import utils

    pack = utils.dispatch_cpu_unquantized_gemm

    def dispatch(layer, remove_weight):
        config = get_current_vllm_config_or_none()
        transfer = config.weight_transfer_config if config else None
        if transfer is None or transfer.backend != "weightcast" or layer.weight.is_meta or layer.weight.ndim != 2:
            pack(layer, remove_weight)
        else:
            layer.cpu_linear = torch.nn.functional.linear

    utils.dispatch_cpu_unquantized_gemm = dispatch
