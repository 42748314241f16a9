"""Puts probes into a kernel's source: what is measured is the kernel that ships, read anew each time. No Triton here.

A kernel becomes the same kernel with one more parameter, a call ahead of everything and a call ahead of every exit.
"""

from __future__ import annotations

import ast

from flashsvd.errors import InputError

TRACE, START, END = "sm_trace", "probe_start", "probe_end"
"""The parameter, which comes first, and the functions that are called with it."""


def instrumented(source: str) -> str:
    """The source of a kernel, without decorators, with its probes.

    Raises InputError, in one line, for what is no kernel: something else than one function, one that returns a value,
    takes any number of arguments or uses the names above.

    >>> print(instrumented("def k(x, n):\\n    if n == 0:\\n        return\\n    store(x, n)"))
    def k(sm_trace, x, n):
        probe_start(sm_trace)
        if n == 0:
            probe_end(sm_trace)
            return
        store(x, n)
        probe_end(sm_trace)
    """
    kernel = _kernel(source)
    taken = {TRACE, START, END} & _names(kernel)
    if taken:
        raise InputError(f"{kernel.name} uses the name {min(taken)} itself: rename it there")
    # First, so that no parameter with a default comes ahead of it.
    ahead = kernel.args.posonlyargs or kernel.args.args
    ahead.insert(0, ast.arg(TRACE))
    kernel.decorator_list = []
    at = 1 if _is_docstring(kernel.body[0]) else 0
    body = _Exits().visit_body(kernel.body)
    if not _leaves(body):
        body.append(_call(END))
    kernel.body = [*body[:at], _call(START), *body[at:]]
    return ast.unparse(ast.fix_missing_locations(kernel))


def stripped(source: str) -> str:
    """The kernel of `instrumented` without its probes: for the check that nothing else was changed."""
    kernel = _kernel(source)
    (kernel.args.posonlyargs or kernel.args.args).pop(0)
    return ast.unparse(_Strip().visit(kernel))


class _Exits(ast.NodeTransformer):
    """A probe ahead of every return of the kernel itself."""

    def visit_body(self, body: list[ast.stmt]) -> list[ast.stmt]:
        made: list[ast.stmt] = []
        for statement in body:
            found = self.visit(statement)
            made.extend(found if isinstance(found, list) else [found])
        return made

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        return node

    def visit_Return(self, node: ast.Return) -> list[ast.stmt]:
        if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
            raise InputError(
                f"line {node.lineno} returns a value: only kernels, which return none, have probes"
            )
        return [_call(END), node]


class _Strip(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        value = node.value
        ours = (
            isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in (START, END)
        )
        return None if ours else node


def _kernel(source: str) -> ast.FunctionDef:
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise InputError(f"the kernel's source cannot be read: {error.msg} in line {error.lineno}") from None
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise InputError("expected the source of one function, the kernel")
    kernel = body[0]
    if kernel.args.vararg or kernel.args.kwarg:
        raise InputError(
            f"{kernel.name} takes any number of arguments: a probe's place among them is not known"
        )
    return kernel


def _names(kernel: ast.FunctionDef) -> set[str]:
    used = {node.id for node in ast.walk(kernel) if isinstance(node, ast.Name)}
    return used | {node.arg for node in ast.walk(kernel) if isinstance(node, ast.arg)}


def _is_docstring(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _leaves(body: list[ast.stmt]) -> bool:
    """Whether nothing is reached behind these statements."""
    last = body[-1] if body else None
    if isinstance(last, ast.If):
        return _leaves(last.body) and _leaves(last.orelse)
    return isinstance(last, ast.Return)


def _call(name: str) -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(name, ast.Load()), [ast.Name(TRACE, ast.Load())], []))
