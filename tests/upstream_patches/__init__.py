"""Proposals to vLLM and gptqmodel, proven on copies of the installed packages without this project's own.

``python -m tests.upstream_patches`` prints the table. The proposals lie in ``upstream/proposals`` of both packages.
"""
