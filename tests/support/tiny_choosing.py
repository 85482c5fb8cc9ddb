"""The program of tiny_gpu_program.py with the kernels that the compiler makes for choosing tokens."""

import dataclasses

from support.tiny_gpu_program import BLOCK, PLAN, TEXT, V

from llmc.codegen.select import Crossovers
from llmc.codegen.target import Target
from llmc.codegen.triton.context import Context
from llmc.codegen.triton.emit_sampling import emit_sampling
from llmc.codegen.triton.kernel import module_text
from llmc.runtime.cuda.plan import Kernel, Launch, Plan


def tiny_choosing() -> tuple[Plan, str]:
    """Its plan, and the text of all its kernels."""
    context = Context(Target.preset("sm_80"), Crossovers(), (), BLOCK, V)
    drafts = {f"sampling_{number}": draft for number, draft in enumerate(emit_sampling(context))}
    kernels = tuple(
        Kernel(name, tuple(draft.kernel.parameters), draft.kernel.warps, draft.kernel.stages, draft.kernel.pdl)
        for name, draft in drafts.items()
    )
    launches = tuple(
        Launch(name, draft.grid, tuple(ref.argument for ref in draft.kernel.refs if ref.argument), draft.when, -1)
        for name, draft in drafts.items()
    )
    plan = dataclasses.replace(
        PLAN,
        kernels=PLAN.kernels + kernels,
        workspaces=(*PLAN.workspaces, *context.workspaces.values()),
        sampling=launches,
    )
    made = module_text({name: draft.kernel for name, draft in drafts.items()}, "Sampling.")
    return plan, TEXT + made.partition('"""\n')[2]
