"""vLLM general plugin for the Qwen3.5/3.6/3.8 hybrids. Public here: :func:`register`, which vLLM calls.

Imports nothing: vLLM only logs an error raised while a plugin is imported, and then serves without it.
"""

__all__ = ["register"]


def register() -> None:
    """Install the plugin's hooks in this process. Idempotent; never raises.

    vLLM calls it in the API server (for every command and every model), the engine core, each worker and
    the model-inspection subprocess. A feature that cannot be installed is off, with one warning naming it.
    """
    try:
        from .features import install_features

        install_features()
    except Exception as error:  # noqa: BLE001 - raised here, it would end every vLLM command for every model
        import logging

        logging.getLogger("vllm.qwen36").warning("vllm-qwen36-plugin is off: %r", error)
