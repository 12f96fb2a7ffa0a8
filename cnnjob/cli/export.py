"""The command ``cnnjob export``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cnnjob.cli import options as opt
from cnnjob.cli.screen import print_json, print_notes


def export(
    run: opt.RUN,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.onnx", help="File to write; ./RUN.onnx by default.")
    ] = None,
    as_json: Annotated[bool, opt.json_option("Print the file's path, inputs and outputs as JSON.")] = False,
) -> None:
    """Write a finished run's network as ONNX.

    The ONNX model maps uint8 images (N, H, W, C) to probabilities. It includes pixel normalisation, but not test-time
    augmentation. The command needs the onnx package: pip install onnx.

    Example: cnnjob export runs/mnist-1a2b3c4d -o mnist.onnx
    """
    from cnnjob.runs.run import Run
    from cnnjob.training.onnx import INPUT, OPSET, OUTPUT
    from cnnjob.training.onnx import export as export_run

    written = export_run(Run(run), output or Path(f"{run.resolve().name}.onnx"))
    print_notes(Run(run))
    input_shape, output_shape = ["N", *written.image_shape], ["N", len(written.class_names)]
    if as_json:
        print_json({
            "path": str(written.path),
            "bytes": written.bytes,
            "opset": OPSET,
            "parameters": written.parameters,
            "input": {"name": INPUT, "dtype": "uint8", "shape": input_shape},
            "output": {"name": OUTPUT, "dtype": "float32", "shape": output_shape},
            "class_names": list(written.class_names),
            "left_out": written.left_out,
        })  # fmt: skip
        return
    shapes = f"{INPUT} uint8 {_format_shape(input_shape)} in, {OUTPUT} float32 {_format_shape(output_shape)} out"
    typer.echo(f"{written.path}: {written.parameters:,} parameters, opset {OPSET}; {shapes}")
    if written.left_out != "none":
        typer.echo(f"the run's test-time augmentation ({written.left_out}) is not included in the file")


def _format_shape(sides: list[Any]) -> str:
    return "×".join(map(str, sides))
