"""`qhdm data`: describe and download data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from qhdm.commands.arguments import above_zero, add_range, fraction, pixels, settings
from qhdm.errors import DataError


def add(commands: argparse._SubParsersAction) -> None:
    """Add `data` to the commands."""
    data = commands.add_parser("data", help="describe or download data")
    kinds = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info = kinds.add_parser("info", help="classes, counts, sizes, values, split; a contact sheet")
    info.add_argument("path", metavar="PATH", help="a folder or zip of class folders, or bundled")
    info.add_argument("--size", type=pixels, metavar="PIXELS", help="resize to this (default: 64)")
    info.add_argument(
        "--test-fraction", type=fraction, metavar="F", help="part held out (default: 0.1)"
    )
    info.add_argument("--classes", nargs="+", metavar="NAME", help="only these class folders")
    add_range(info)
    info.add_argument(
        "--bands",
        nargs="+",
        type=lambda text: int(text) if text.isdecimal() else text,
        metavar="BAND",
        help="read these bands of GeoTIFF or JPEG 2000 files, by name (B04) or number",
    )
    info.add_argument(
        "--file-bands",
        nargs="+",
        metavar="NAME",
        help="names of all bands in each file, or sentinel2 (B8A after B08) or eurosat (B8A last)",
    )
    info.add_argument(
        "--percentile",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="instead of --range: measure the range of each band between these percentiles",
    )
    info.add_argument("--split", metavar="FILE", help="split as a CSV or JSON list says")
    info.add_argument(
        "--blocks", type=above_zero, metavar="METRES", help="hold out whole squares of this side"
    )
    info.add_argument("--sheet", type=Path, metavar="FILE", help="file for the contact sheet")
    info.set_defaults(command=_info)
    download = kinds.add_parser("download", help="download a data set")
    download.add_argument("set", choices=["eurosat"], help="EuroSAT RGB, 90 MiB")
    download.add_argument(
        "--to", type=Path, metavar="DIR", help="where to unpack it (default: in the cache folder)"
    )
    download.add_argument("--url", help="a mirror of the official archive")
    download.set_defaults(command=_download)


def _info(arguments: argparse.Namespace) -> None:
    import dataclasses

    from qhdm import data
    from qhdm.config import DataConfig
    from qhdm.config.fields import BAND_ORDERS
    from qhdm.data.info import describe
    from qhdm.pictures import contact_sheet, save_png

    names = arguments.file_bands
    given = {
        "root": arguments.path,
        "image_size": arguments.size,
        "range": arguments.range,
        "classes": arguments.classes and list(dict.fromkeys(arguments.classes)),
        "test_fraction": arguments.test_fraction,
        "bands": arguments.bands,
        "file_bands": names[0] if names and names[0] in BAND_ORDERS else names,
        "percentile": arguments.percentile,
        "split": arguments.split,
        "blocks": arguments.blocks,
    }
    config = settings(DataConfig, given, DataError)
    text = describe(config, progress=True)
    print(text)
    sheet = arguments.sheet or Path(f"{Path(arguments.path).stem}_contact_sheet.png")
    try:
        dataset = data.load(dataclasses.replace(config, skip_broken=True), progress=True)
    except DataError as error:
        # Not a failure of the command, which is there to tell what is wrong with the data.
        print(f"contact sheet: none ({'see above' if str(error) in text else error})")
        return
    save_png(contact_sheet(dataset), sheet)
    print(f"contact sheet: {sheet}")


def _download(arguments: argparse.Namespace) -> None:
    import dataclasses

    from qhdm.data.download import EUROSAT, download
    from qhdm.data.source import eurosat_folder

    archive = EUROSAT if arguments.url is None else dataclasses.replace(EUROSAT, url=arguments.url)
    folder = download(archive, arguments.to or eurosat_folder().parent)
    print(f"EuroSAT RGB: {folder}")
    if arguments.to:
        print(f"use it with --set data.root={folder}")
