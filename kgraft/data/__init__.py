"""Images and labels: data sets by name, augmentation on the device, an order for every peer."""

from kgraft.data.augment import Augment, Draw
from kgraft.data.crops import CentreCrop, RandomResizedCrop
from kgraft.data.dataset import Dataset, OpenSet, Split, channel_statistics
from kgraft.data.load import Entry, data_directory, describe, load, names, prepare
from kgraft.data.order import (
    augmentation_rng,
    check_batch_size,
    epoch_order,
    split_validation,
)
from kgraft.data.photo_sets import load_folder
from kgraft.data.photo_stream import OrderedPhotos, PhotoStream
from kgraft.data.photos import Files, Photos
from kgraft.data.stream import BatchStream
from kgraft.data.whole import ShiftedWhole, Whole

__all__ = [
    "load",
    "prepare",
    "names",
    "describe",
    "data_directory",
    "Dataset",
    "OpenSet",
    "Split",
    "Entry",
    "Augment",
    "Draw",
    "BatchStream",
    "load_folder",
    "Files",
    "Photos",
    "PhotoStream",
    "OrderedPhotos",
    "RandomResizedCrop",
    "CentreCrop",
    "ShiftedWhole",
    "Whole",
    "epoch_order",
    "augmentation_rng",
    "split_validation",
    "check_batch_size",
    "channel_statistics",
]
