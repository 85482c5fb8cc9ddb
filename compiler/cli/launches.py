"""The launches of a GPU program for people: a row for each, in the order in which a step makes them."""

from collections.abc import Mapping, Sequence

from llmc.runtime.cuda.plan import Argument, Extent, Launch, Plan, Product, When

COLUMNS = ("when", "region", "launch", "grid", "variant", "arguments")


def table(plan: Plan) -> tuple[list[str], list[list[object]]]:
    """Columns and rows: what is done with weights at load, the launches of a step, and those that choose tokens."""
    rows: list[list[object]] = []
    for each in plan.rearrangements:
        rows.append(["load", "", each.launch.kernel, _grid(each.launch), "", f"{each.weight}: {each.bytes} bytes"])
    parameters = {kernel.name: [name for name, _ in kernel.parameters] for kernel in plan.kernels}
    rows += [_row(launch, launch.region, parameters) for launch in plan.launches]
    rows += [_row(launch, "choice", parameters) for launch in plan.sampling]
    return list(COLUMNS), rows


def _row(launch: Launch | Product, region: object, parameters: Mapping[str, Sequence[str]]) -> list[object]:
    candidate = launch.candidate
    variant = "" if candidate is None else f"{candidate.variant} of {candidate.linear}"
    if isinstance(launch, Product):
        name, roles = launch.name, ["weight", "inputs", "sums"]
    else:
        name, roles = launch.kernel, list(parameters[launch.kernel])
    given = zip(roles, map(_argument, launch.arguments), strict=True)
    told = ", ".join(role if role == argument else f"{role} = {argument}" for role, argument in given)
    return [_when(launch.when), region, name, _grid(launch), variant, told]


def _when(when: When) -> str:
    """Such as "T 2 to 8, decode"; "never" where another variant serves all sizes."""
    kind = {None: [], True: ["decode"], False: ["not decode"]}[when.decode]
    if when.most is not None and when.most < when.least:
        return "never"
    if not when.symbol:
        return ", ".join(kind) or "always"
    end = "on" if when.most is None else f"to {when.most}"
    return ", ".join([f"{when.symbol} {when.least} {end}", *kind])


def _grid(launch: Launch | Product) -> str:
    if isinstance(launch, Product):
        return f"{launch.rows} x {launch.n} x {launch.k}"
    return " x ".join(_side(side) for side in launch.grid)


def _side(side: Extent) -> str:
    """Such as "4 ceil(T / 16) + B"."""
    size = f"ceil({side.symbol} / {side.per})" if side.per > 1 else side.symbol
    times = [] if side.times == 1 and size else [str(side.times)]
    parts = [" ".join([*times, *([size] if size else [])]), side.plus, str(side.more) if side.more else ""]
    return " + ".join(part for part in parts if part)


def _argument(argument: Argument) -> str:
    if argument.kind == "arena":
        return f"arena + {argument.number}"
    if argument.kind == "cache":
        return f"{argument.name} of layer {argument.number}"
    return argument.name or argument.kind
