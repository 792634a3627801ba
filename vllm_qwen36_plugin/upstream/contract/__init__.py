"""The contract: every name of vLLM, gptqmodel, torch and transformers that is touched below a public interface.

`contract.toml` of either ledger (this room, and ``gptq_hybrid/upstream``) lists the names by entry. `seen.json` has
the shape that each had in the versions read. ``qwen36 contract`` compares an installed version, a wheel, a source
archive or a folder with them: by its text, so nothing of it is imported and no GPU is needed.
"""
