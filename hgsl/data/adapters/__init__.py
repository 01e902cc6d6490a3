"""Adapters: one function per data set, from a folder to a manifest.

A new data set is one file and one line in ``DATASETS``.
"""

from collections.abc import Callable

from hgsl.data.adapters import csv, folder, imagefolder, parquet
from hgsl.data.adapters.benchmarks import aircraft, cars, cub, flowers, flowers17, inshop, sop
from hgsl.data.manifest import Manifest
from hgsl.data.synthetic import butterflies

DATASETS: dict[str, Callable[..., Manifest]] = {
    "aircraft": aircraft.load,
    "cars": cars.load,
    "csv": csv.load,
    "cub": cub.load,
    "flowers": flowers.load,
    "flowers17": flowers17.load,
    "folder": folder.load,
    "imagefolder": imagefolder.load,
    "inshop": inshop.load,
    "parquet": parquet.load,
    "sop": sop.load,
    "synthetic": butterflies.load,
}
