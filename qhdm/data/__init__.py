"""Labelled Earth-Observation images: EuroSAT, any set of class folders, the bundled patches.

`qhdm.data.download` fetches EuroSAT, `qhdm.data.info` describes a set.
"""

from qhdm.data.bands import Bands, Images
from qhdm.data.batches import Batches
from qhdm.data.dataset import Dataset, class_names, load, resolved
from qhdm.data.geotiff import GeoImage, read_geotiff, write_geotiff
from qhdm.data.given import from_torchgeo, given, of_given, shape_of
from qhdm.data.images import decode
from qhdm.data.source import (
    EUROSAT_CLASSES,
    GIVEN,
    Item,
    Source,
    cache_folder,
    eurosat_folder,
    open_source,
)
from qhdm.data.splits import held_out

__all__ = [
    "EUROSAT_CLASSES",
    "GIVEN",
    "Bands",
    "Batches",
    "Dataset",
    "GeoImage",
    "Images",
    "Item",
    "Source",
    "cache_folder",
    "class_names",
    "decode",
    "eurosat_folder",
    "from_torchgeo",
    "given",
    "held_out",
    "load",
    "of_given",
    "open_source",
    "read_geotiff",
    "resolved",
    "shape_of",
    "write_geotiff",
]
