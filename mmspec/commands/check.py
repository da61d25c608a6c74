"""`mmspec check MODEL` tests that mmspec reads a model exactly as the model's own `generate` does."""

from __future__ import annotations

import argparse

from ..errors import MMSpecError
from . import output

ARGUMENTS = "MODEL"  # instead of a configuration; see mmspec.cli


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `mmspec check`."""
    parser.description = (
        "Compare a model's logits in tree passes with those of its own generate, step by step, on random tokens and "
        "pictures of noise. MODEL is tiny, a folder or a hub id."
    )
    parser.add_argument(
        "--dtype", metavar="DTYPE", default="float32", help="float32 (the default), bfloat16 or float16"
    )
    parser.add_argument("--device", metavar="DEVICE", help="where to put it; by default a GPU if there is one")
    parser.add_argument("--attention", metavar="NAME", help="attention back end: sdpa, eager or flex_attention")
    parser.add_argument("--output", metavar="FILE", help=output.HELP.format(what="the report"))
    parser.add_argument("--seed", metavar="NUMBER", type=int, default=0, help="of tokens and pictures")


def run(arguments: argparse.Namespace) -> int:
    """Print every comparison; return 1 if one is wrong."""
    if len(arguments.overrides) != 1:
        raise MMSpecError(f"name one model to check: mmspec check {ARGUMENTS}")
    (name,) = arguments.overrides
    place = output.output_file(arguments.output)

    import transformers
    from rich.console import Console

    from ..check import check_target
    from ..loading import load_target

    transformers.utils.logging.disable_progress_bar()
    further = {"attn_implementation": arguments.attention} if arguments.attention else {}
    with Console(stderr=True).status("loading"):
        target = load_target(name, arguments.dtype, arguments.device, check=False, **further)
    family = type(target.family).__name__
    listed = "listed" if target.family.verified else "not listed, so every target of it checks itself"
    console = Console(highlight=False, soft_wrap=True)
    head = (
        f"{type(target.model).__name__} as {family} ({listed}), {arguments.dtype}, {target.attention}, {target.device}"
    )
    console.print(head)
    with Console(stderr=True).status("comparing"):
        report = check_target(target, seed=arguments.seed)
    console.print(str(report), markup=False)
    verdict = "exact" if report.ok else "WRONG: mmspec does not read this model as it is"
    console.print(verdict, style="bold")
    findings = [
        {"what": each.what, "error": each.error, "spread": each.spread, "relative": each.relative, "ok": each.ok}
        for each in report.findings
    ]
    values = {
        "model": name,
        "class": type(target.model).__name__,
        "family": family,
        "listed": target.family.verified,
        "dtype": arguments.dtype,
        "attention": target.attention,
        "device": str(target.device),
        "seed": arguments.seed,
        "ok": report.ok,
        "findings": findings,
        "notes": report.notes,
    }
    output.write_result(place, "\n".join([head, str(report), verdict]), values)
    return 0 if report.ok else 1
