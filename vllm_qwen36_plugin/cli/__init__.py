"""What the consumer adds to the ``qwen36`` command line: ``tune``. It imports torch and vLLM when it runs."""
