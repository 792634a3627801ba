"""Other versions of vLLM and gptqmodel, served and quantized by on this CPU."""
