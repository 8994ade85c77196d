"""A contract type for import-linter: the named modules may import the listed modules, and nothing else."""

from __future__ import annotations

from typing import Any

import grimp
from importlinter import Contract, ContractCheck, fields, output


class MayImportContract(Contract):
    """Type `may_import`: a module of `modules` imports only from `allowed`; `a` allows `a.b` as well.

    The standard library counts like every other package, so that a domain cannot open a socket.
    """

    type_name = "may_import"

    modules: Any = fields.SetField(subfield=fields.ModuleExpressionField())
    allowed: Any = fields.SetField(subfield=fields.StringField())

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        """Compares the direct imports of each module with the list."""
        found = [
            f"{module} imports {imported}"
            for expression in self.modules
            for module in sorted(graph.find_matching_modules(expression.expression))
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if not any(imported == name or imported.startswith(f"{name}.") for name in self.allowed)
        ]
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Prints one line for each import that is not allowed."""
        for line in check.metadata["found"]:
            output.print_error(line)
