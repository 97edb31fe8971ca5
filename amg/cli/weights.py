"""`sam-amg weights`: checkpoints listed, fetched, verified, converted, exported."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from amg.errors import WeightsError
from amg.sam.weights import DEFAULT, KNOWN, Checkpoint, cache_folder, cached, fetch, find, verify


@click.group()
def weights() -> None:
    """Checkpoints: list, fetch and verify the published ones, convert and export any.

    They are kept in SAM_AMG_CACHE, else in the platform's cache folder.
    """


@weights.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
def list_command(as_json: bool) -> None:
    """Name, file, size, licence, whether it is in the cache, and the places it comes from.

    Example: sam-amg weights list --json
    """
    if as_json:
        click.echo(json.dumps([_describe(checkpoint) for checkpoint in KNOWN.values()], indent=2))
        return
    row = "{:<12} {:<22} {:>10}  {:<10} {}"
    click.echo(row.format("NAME", "FILE", "SIZE", "LICENCE", "CACHED"))
    for checkpoint in KNOWN.values():
        size = f"{checkpoint.size_bytes / 1e6:,.1f} MB"
        there = "yes" if cached(checkpoint) else "no"
        click.echo(row.format(checkpoint.name, checkpoint.file, size, checkpoint.licence, there))
        for place in checkpoint.places:
            click.echo(f"    {place}")
    click.echo(f"cache: {cache_folder()}")


@weights.command("fetch")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--quiet", is_flag=True, help="No progress bar and no word about places that failed.")
def fetch_command(names: tuple[str, ...], quiet: bool) -> None:
    """Bring checkpoints into the cache and print their paths; mobile-sam if none is named.

    Example: sam-amg weights fetch sam-vit-b
    """
    for checkpoint in [find(name) for name in names or (DEFAULT,)]:
        click.echo(fetch(checkpoint.name, progress=not quiet))


@weights.command("verify")
@click.argument("names_or_paths", nargs=-1, metavar="[NAME|PATH]...")
def verify_command(names_or_paths: tuple[str, ...]) -> None:
    """Compare digests with the table; everything in the cache if nothing is named. Exit status 1 if one differs.

    Example: sam-amg weights verify mobile-sam ~/sam_vit_b_01ec64.pth
    """
    present = tuple(known.name for known in KNOWN.values() if (cache_folder() / known.file).is_file())
    verdicts = [verify(name_or_path) for name_or_path in names_or_paths or present]
    for verdict in verdicts:
        click.echo(verdict)
    if not verdicts:
        click.echo(f"no checkpoint in {cache_folder()}")
    wrong = [verdict for verdict in verdicts if not verdict.ok]
    if wrong:
        raise WeightsError(
            f"{len(wrong)} of {len(verdicts)} files are no known checkpoint;"
            " if it lies in the cache, remove it and run: sam-amg weights fetch NAME"
        )


@weights.command("convert")
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--overwrite", is_flag=True, help="Replace what an earlier conversion wrote.")
@click.option("--quiet", is_flag=True, help="Do not print what was written.")
def convert_command(source: str, target: str, overwrite: bool, quiet: bool) -> None:
    """Write a checkpoint in the layout of the original package, or in that of the transformers library.

    IN is a known name, a .pth file, a folder with config.json, or a name on the model hub. OUT ending in .pth becomes
    one file with the original names; any other OUT a folder with config.json, model.safetensors and the processor's
    settings. The numbers stay as they are. transformers has no MobileSAM; only this package reads such a folder.

    \b
    Example: sam-amg weights convert sam-vit-b sam-vit-b-folder
             sam-amg weights convert fine-tuned-folder fine-tuned.pth
    """
    from amg.sam.convert import convert_weights

    written = convert_weights(source, target, overwrite=overwrite)
    if not quiet:
        click.echo(written)


@weights.command("export-onnx")
@click.argument("source", metavar="WEIGHTS")
@click.option("-o", "--out", required=True, metavar="FOLDER", type=click.Path(), help="Folder for the two files.")
@click.option(
    "--opset", type=click.IntRange(18, 23), default=18, show_default=True, help="Version of ONNX's operators."
)
@click.option("--best-mask", is_flag=True, help="The decoder returns one mask for each prompt, not four.")
@click.option("--overwrite", is_flag=True, help="Replace what an earlier export wrote.")
@click.option("--quiet", is_flag=True, help="Do not print what was written.")
def export_onnx_command(source: str, out: str, opset: int, best_mask: bool, overwrite: bool, quiet: bool) -> None:
    """Write image_encoder.onnx and mask_decoder.onnx, to run a model without PyTorch.

    WEIGHTS is what `sam-amg weights convert` takes. The decoder has the inputs and outputs of the original project's
    export: image_embeddings, point_coords, point_labels, mask_input, has_mask_input, orig_im_size to masks,
    iou_predictions, low_res_masks; docs/sam.md explains them. Needs the packages onnx and onnxscript:
    pip install 'sam-amg[onnx]'. Where onnxruntime is installed too, both files are run and compared with the model.

    Example: sam-amg weights export-onnx mobile-sam -o mobile-sam-onnx
    """
    from importlib.util import find_spec

    from amg.sam.onnx import export_onnx, refuse_taken, require_onnx
    from amg.sam.onnx_check import compare
    from amg.sam.sam_model import SamModel

    require_onnx()
    refuse_taken(out, overwrite=overwrite)
    sam = SamModel.from_pretrained(source)
    files = export_onnx(sam, out, opset=opset, best_mask=best_mask)
    difference = compare(sam, files) if find_spec("onnxruntime") else None
    if not quiet:
        click.echo(f"{files.encoder}\n{files.decoder}")
        unknown = "not compared with the model: onnxruntime is not installed"
        click.echo(unknown if difference is None else f"differ from the model by {difference:.1e} of the range at most")


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    path = cached(checkpoint)
    return asdict(checkpoint) | {"cached": path and str(path)}
