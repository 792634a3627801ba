"""Give ``register_linear_kernel`` an argument ``first``, whatever kinds of kernels the version knows.

As a diff this would hold every branch of the function.
"""

from __future__ import annotations

import ast

FILE = "vllm/model_executor/kernels/linear/__init__.py"
_ADD = """def _add_kernel(
    kernels: dict[PlatformEnum, list],
    platform: PlatformEnum,
    kernel_class: type,
    first: bool,
) -> None:
    candidates = kernels.setdefault(platform, [])
    candidates.insert(0 if first else len(candidates), kernel_class)


"""
_DOC = """        first (bool): Consider the kernel before those registered already,
            rather than after all of them.
"""


def edit(source: str) -> str:
    """Return the changed text of :data:`FILE`."""
    tree = ast.parse(source)
    (function,) = (
        n
        for n in tree.body
        if isinstance(n, ast.FunctionDef) and n.name == "register_linear_kernel"
    )
    lines = source.splitlines(keepends=True)
    branches = [
        node.body
        for node in ast.walk(function)
        if isinstance(node, ast.If) and len(node.body) == 2
    ]
    # From the last one up, so that line numbers stay what they are.
    for test, append in sorted(branches, key=lambda body: -body[0].lineno):
        assert ast.unparse(append).endswith("[platform].append(kernel_class)")
        name = ast.unparse(append).partition("[")[0]
        lines[test.lineno - 1 : append.end_lineno] = [
            f"        _add_kernel({name}, platform, kernel_class, first)\n"
        ]
    body = "".join(lines)
    head, _, rest = body.partition("def register_linear_kernel(\n")
    arguments, _, rest = rest.partition(") -> None:\n")
    doc, raises, rest = rest.partition("\n    Raises:\n")
    signature = f"def register_linear_kernel(\n{arguments}    first: bool = False,\n) -> None:\n"
    return f"{head}{_ADD}{signature}{doc}{_DOC}{raises}{rest}"
